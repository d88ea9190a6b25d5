"""The runs of a comparison: found, read from their files, and grouped.

A run is results.json (or a test's scores) and the .npz beside it. Runs that differ in nothing but
the seed form one group.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils import checkpoint
from utils.errors import ConfigError
from utils.evaluation.collapse import CollapseReport
from utils.evaluation.record import REMEDY, ScoreRecord, conditions
from utils.files import file_digest, read_arrays
from utils.runs import exported
from utils.runs.folder import RESULTS
from utils.runs.stored import expand_pattern
from utils.settings.identity import FORMER, NEUTRAL, determining
from utils.settings.recorded import recorded_settings
from utils.settings.schema.model import Model
from utils.settings.schema.task import CompareTask

EVALUATION = ("train.seed", "model.is_k", *FORMER)  # may differ for the same model
NAMED_DIFFERENCES = 3  # settings that a group's label may spell out

# Settings that follow from others unless they are set themselves: they differ where those do.
DERIVED = {
    "dataset.image_size": "dataset.size",
    "model.likelihood": "dataset.likelihood",
    "train.scheduler.T_max": "train.max_epochs",
    "train.scheduler.max_lr": "train.optimizer.lr",
}


@dataclass(frozen=True)
class Run:
    """One model's record on a split, and its per-image figures: (N, …) nats."""

    record: ScoreRecord
    per_image: dict[str, np.ndarray]

    @property
    def seed(self) -> int:
        """train.seed."""
        return self.record.seed

    @property
    def bound(self) -> CollapseReport:
        """KL per layer and active units."""
        return self.record.bound

    @cached_property
    def settings(self) -> dict:
        """The settings that determine the model, without the seed: dotted key -> value."""
        settings = determining(self.record.config)
        return {key: value for key, value in settings.items() if key not in EVALUATION}


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone."""

    label: str
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        """train.seed of every run."""
        return [run.seed for run in self.runs]

    def values(self, figure: Callable[[Run], float]) -> list[float]:
        """A figure of every run."""
        return [figure(run) for run in self.runs]


def sources(named: Sequence[str]) -> list[str]:
    """The paths of the runs that the setting `runs` names; patterns are expanded.

    Folders that a run trained again has left aside are in no pattern.

    Raises:
        ConfigError: if there are fewer than two.
    """
    paths = [
        path
        for name in named
        for path in expand_pattern(name)
        if path == name or not re.search(r"\.old\d+/?$", path)
    ]
    if len(paths) < 2:
        raise ConfigError(
            f"runs={list(named)} names {len(paths)} run(s): name two or more, as in "
            "'runs=[runs/digits_*]'."
        )
    return paths


def cached_run(
    source: str, task: CompareTask, runs_dir: str, overrides: Sequence[str]
) -> Run | None:
    """The run's scores from its files; None if they are missing or not what the task asks for.

    Raises:
        ConfigError: if a file is damaged.
    """
    output_folder = checkpoint.output_folder(source, runs_dir)
    file = checkpoint.locate(source, runs_dir)
    folder = Path(source).expanduser()
    scores_only = folder.is_dir() and not file.exists()  # a folder without a checkpoint
    places = [file.parent] if exported.is_exported(file) else []  # it comes with its scores
    places.append(folder if scores_only else output_folder)
    stems = (RESULTS, f"{task.split}_scores")
    for path in [place / f"{stem}.json" for place in places for stem in stems]:
        if not (path.exists() and path.with_suffix(".npz").exists()):
            continue
        run = read_run(path)
        current = scores_only or file_digest(file) == run.record.checkpoint_digest
        if current and (scores_only or _answers(run.record, task, overrides)):
            return run
    return None


def read_run(path: Path) -> Run:
    """A run from its JSON file and the .npz beside it.

    Raises:
        ConfigError: if one of them is damaged.
    """
    record, arrays_path = ScoreRecord.read(path), path.with_suffix(".npz")
    try:
        per_image = read_arrays(arrays_path)
    except ValueError as error:
        raise ConfigError(f"{arrays_path} is damaged ({error}): {REMEDY}.") from error
    run = Run(record, per_image)
    if not _belong_together(run):  # as when an evaluation was killed between the two files
        raise ConfigError(f"{arrays_path} is of other scores than {path}: {REMEDY}.")
    return run


def _belong_together(run: Run) -> bool:
    """Whether the per-image figures are those that the record has the averages of."""
    images, arrays = run.bound.images, run.per_image
    shapes = {f"nll_{estimate.estimator}": (images,) for estimate in run.record.likelihoods}
    shapes |= {"nelbo": (images,), "reconstruction": (images,), "kl": (images, len(run.bound.kl))}
    found = {name: array.shape for name, array in arrays.items() if array.dtype.kind == "f"}
    if any(found.get(name) != shape for name, shape in shapes.items()):
        return False
    means = [arrays[f"nll_{estimate.estimator}"].mean() for estimate in run.record.likelihoods]
    recorded = [estimate.nll for estimate in run.record.likelihoods]
    return np.allclose(means, recorded, rtol=1e-6, equal_nan=True)


def _answers(record: ScoreRecord, task: CompareTask, overrides: Sequence[str]) -> bool:
    """Whether a record is of the split, images, conditions, estimators and samples asked for."""
    model = recorded_settings(record.config, overrides, record.checkpoint, None).model
    return (
        record.split == task.split
        and record.conditions == conditions(task)
        and record.config["task"].get("num_images") == task.num_images
        and set(task.estimators) <= {estimate.estimator for estimate in record.likelihoods}
        and sampled_as(record, model)
    )


def sampled_as(record: ScoreRecord, model: Model) -> bool:
    """Whether its likelihoods are of as many samples, paths and draws of the context as set."""
    return all(
        estimate.num_samples == model.is_k
        and estimate.prior_samples in (None, model.is_k_paths)
        and (estimate.prior_samples is None or estimate.per_context == model.is_k_per_context)
        for estimate in record.likelihoods
    )


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs grouped by all settings but the seed, in the order in which they are given.

    Raises:
        ConfigError: if they were evaluated on different images or under different conditions, or
            one of them appears twice.
    """
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        _check_comparable(run.record, runs[0].record)
        same = by_settings.setdefault(json.dumps(run.settings, sort_keys=True), [])
        if run.seed in [other.seed for other in same]:
            raise ConfigError(
                f"{run.record.checkpoint} is among the runs twice, or has the settings and the "
                f"seed {run.seed} of another: name each once."
            )
        same.append(run)
    labels = _labels([same[0] for same in by_settings.values()])
    return [
        Group(label, sorted(same, key=lambda run: run.seed))
        for label, same in zip(labels, by_settings.values(), strict=True)
    ]


def _check_comparable(record: ScoreRecord, first: ScoreRecord) -> None:
    """Raise ConfigError unless both were evaluated on the same images under the same conditions."""
    if record.images_digest != first.images_digest:
        raise ConfigError(
            f"{record.checkpoint} ({record.dataset}, {record.split}) and "
            f"{first.checkpoint} ({first.dataset}, {first.split}) were evaluated on "
            "different images: compare runs on the same split of the same data set."
        )
    if record.protocol != first.protocol:
        raise ConfigError(
            f"{record.checkpoint} ({record.protocol}) and {first.checkpoint} ({first.protocol}) "
            "have likelihoods of different things: compare models of one kind of likelihood."
        )
    if record.conditions != first.conditions:
        raise ConfigError(
            f"{record.checkpoint} ({record.conditions_text}) and {first.checkpoint} "
            f"({first.conditions_text}) were scored under different conditions, and one of them "
            "has no checkpoint to be scored anew: name its checkpoint, or leave it out."
        )


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """The settings that tell the runs apart, dotted keys, sorted.

    Left out are the name, settings that equal the one they are derived from in every run, and those
    that all runs which have them share, where a choice of another `_target_` explains why the
    others have none.
    """
    values = {
        key: [run.settings.get(key) for run in runs]
        for key in sorted({key for run in runs for key in run.settings})
    }
    different = {key: own for key, own in values.items() if len(set(map(repr, own))) > 1}
    parts = [key.removesuffix("_target_") for key in different if key.endswith("._target_")]
    return [
        key
        for key, own in different.items()
        if key != "name"
        and own != different.get(DERIVED.get(key))
        and not (key.startswith(tuple(parts)) and _one_value(own))
    ]


def _one_value(values: Sequence) -> bool:
    """Whether a setting is missing from some of the runs, and the same in all others."""
    return None in values and len({repr(value) for value in values if value is not None}) == 1


def _labels(runs: Sequence[Run]) -> list[str]:
    """The runs' names; runs of the same name are told apart by the settings that differ."""
    labels = []
    for run in runs:
        namesakes = [other for other in runs if other.record.name == run.record.name]
        differing = differing_settings(namesakes)
        shown = {key: run.settings.get(key, NEUTRAL.get(key)) for key in differing}
        named = [f"{key}={shown[key]}" for key in differing[:NAMED_DIFFERENCES]]
        labels.append(" ".join([run.record.name, *named]))
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({index})" for index, label in enumerate(labels, 1)]
    return labels
