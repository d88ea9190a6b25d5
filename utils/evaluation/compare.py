"""Models side by side: scores, means over seeds, differences paired over the same images.

A run is what results.json (or a test's scores) and the .npz beside it hold. Runs that differ in
nothing but the seed are one group; every group is compared with the first.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from scipy.stats import t as student

from model.objective import bits_per_dim
from utils import checkpoint
from utils.errors import ConfigError
from utils.evaluation.collapse import Z_95, CollapseReport
from utils.files import file_digest
from utils.runs.folder import RESULTS, expand_pattern
from utils.settings.composition import override_settings
from utils.settings.identity import determining

EVALUATION = ("train.seed", "model.is_k", "model.is_k_prior")  # of the same model
NAMED_DIFFERENCES = 3  # settings that a group's label may spell out


@dataclass(frozen=True)
class Run:
    """One model's record on a split, and its images' own figures: (N, …) nats."""

    record: dict
    per_image: dict[str, np.ndarray]

    @property
    def seed(self) -> int:
        """train.seed."""
        return self.record["seed"]

    @cached_property
    def bound(self) -> CollapseReport:
        """KL per layer and active units."""
        return CollapseReport(**self.record["bound"])

    @cached_property
    def settings(self) -> dict:
        """What makes it the model that it is, the seed aside: dotted key -> value."""
        settings = determining(self.record["config"])
        return {key: value for key, value in settings.items() if key not in EVALUATION}


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone."""

    label: str
    runs: list[Run]

    def seeds(self, figure: Callable[[Run], float]) -> list[float]:
        """A figure of every run."""
        return [figure(run) for run in self.runs]


@dataclass(frozen=True)
class Measure:
    """A figure of a run, and where it is a mean over images, of every image."""

    name: str
    unit: str
    of: Callable[[Run], float]
    per_image: Callable[[Run], np.ndarray] | None


def sources(wanted: Sequence[str]) -> list[str]:
    """The runs that the setting names: paths, of which some may be patterns.

    Raises:
        ConfigError: if there are fewer than two.
    """
    found = [path for name in wanted for path in expand_pattern(name)]
    if len(found) < 2:
        raise ConfigError(
            f"runs={list(wanted)} names {len(found)} run(s): name two or more, as in "
            "'runs=[runs/digits_*]'."
        )
    return found


def stored(source: str, task: dict, runs_dir: str, overrides: Sequence[str]) -> Run | None:
    """The run's scores where they are on disk and are what the task asks for."""
    home = checkpoint.home(source, runs_dir)
    file = checkpoint.locate(source, runs_dir)
    folder = Path(source).expanduser()
    tested = folder.is_dir() and not file.exists()  # holds scores and no checkpoint
    for stem in (RESULTS, f"{task['split']}_scores"):
        path = (folder if tested else home) / f"{stem}.json"
        if not (path.exists() and path.with_suffix(".npz").exists()):
            continue
        run = read(path)
        same = tested or file_digest(file) == run.record["checkpoint_digest"]
        if same and (tested or _answers(run.record, task, overrides)):
            return run
    return None


def read(path: Path) -> Run:
    """A run from its JSON file and the .npz beside it."""
    with np.load(path.with_suffix(".npz")) as arrays:
        per_image = {name: arrays[name] for name in arrays.files}
    return Run(json.loads(path.read_text(encoding="utf-8")), per_image)


def _answers(record: dict, task: dict, overrides: Sequence[str]) -> bool:
    """Whether a record is of the split, images, estimators and samples asked for."""
    settings = override_settings(record["config"], overrides, record["checkpoint"])
    model = settings["model"]
    entries = {entry["estimator"]: entry for entry in record["likelihoods"]}
    return (
        record["split"] == task["split"]
        and record["seed"] == settings["train"]["seed"]
        and record["config"]["task"].get("num_images") == task["num_images"]
        and set(task["estimators"]) <= set(entries)
        and all(
            entry["num_samples"] == model["is_k"]
            and entry["prior_samples"] in (None, model["is_k_prior"])
            for entry in entries.values()
        )
    )


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs by what they are but for the seed, in the order in which they come.

    Raises:
        ConfigError: if they were evaluated on different images, or one of them twice.
    """
    first = runs[0].record
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        if run.record["images_digest"] != first["images_digest"]:
            raise ConfigError(
                f"{run.record['checkpoint']} ({run.record['dataset']}, {run.record['split']}) and "
                f"{first['checkpoint']} ({first['dataset']}, {first['split']}) were evaluated on "
                "different images: compare runs on the same split of the same data set."
            )
        same = by_settings.setdefault(json.dumps(run.settings, sort_keys=True), [])
        if run.seed in [other.seed for other in same]:
            raise ConfigError(
                f"{run.record['checkpoint']} is among the runs twice, or has the settings and the "
                f"seed {run.seed} of another: name each once."
            )
        same.append(run)
    labels = _labels([same[0] for same in by_settings.values()])
    return [
        Group(label, sorted(same, key=lambda run: run.seed))
        for label, same in zip(labels, by_settings.values(), strict=True)
    ]


def _labels(runs: Sequence[Run]) -> list[str]:
    """Names; where several have the same, with the settings in which they differ."""
    labels = []
    for run in runs:
        name = run.record["name"]
        rivals = [other for other in runs if other.record["name"] == name]
        keys = sorted({key for other in rivals for key in other.settings})
        differing = [
            key for key in keys if len({repr(other.settings.get(key)) for other in rivals}) > 1
        ]
        spelt = [f"{key}={run.settings.get(key)}" for key in differing[:NAMED_DIFFERENCES]]
        labels.append(" ".join([name, *spelt]))
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({index})" for index, label in enumerate(labels, 1)]
    return labels


def measures(runs: Sequence[Run]) -> list[Measure]:
    """What can be compared: the estimators that all runs have with the same samples, and more.

    Raises:
        ConfigError: if an estimator is there with different numbers of samples.
    """
    dims = runs[0].record["dims"]
    found = []
    for name in [entry["estimator"] for entry in runs[0].record["likelihoods"]]:
        entries = [_entry(run, name) for run in runs]
        if None in entries:
            continue
        samples = sorted({(e["num_samples"], e["prior_samples"] or 0) for e in entries})
        if len({k for k, _ in samples}) > 1 or len({n for _, n in samples if n}) > 1:
            raise ConfigError(
                f"The runs' {name} has K = {' and '.join(str(k) for k, _ in samples)}: "
                "give model.is_k=… (and model.is_k_prior=…) to evaluate them alike."
            )
        column = f"nll_{name}"
        title = f"{name}, K = {samples[0][0]}"
        paths = max(n for _, n in samples)
        title += f", {paths} paths" if paths else ""
        found.append(_averaged(title, "nats", column, 1.0))
        found.append(_averaged(title, "bits/dim", column, bits_per_dim(1.0, dims)))
    found.append(_averaged("−elbo", "nats", "nelbo", 1.0))
    found.append(_averaged("reconstruction", "nats", "reconstruction", 1.0))
    found.append(
        Measure(
            "KL",
            "nats",
            lambda run: float(run.per_image["kl"].sum(1).mean()),
            lambda run: run.per_image["kl"].sum(1),
        )
    )
    found.append(Measure("active units", "%", lambda run: 100.0 * run.bound.active_units, None))
    return found


def _entry(run: Run, estimator: str) -> dict | None:
    return next((e for e in run.record["likelihoods"] if e["estimator"] == estimator), None)


def _averaged(name: str, unit: str, column: str, scale: float) -> Measure:
    return Measure(
        name,
        unit,
        lambda run: scale * float(run.per_image[column].mean()),
        lambda run: scale * run.per_image[column],
    )


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation where there are two or more."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def difference(measure: Measure, group: Group, base: Group) -> dict:
    """group − base: the mean, its 95 % half-width over images, and that over seeds.

    Over images: of the images' own differences, each averaged over a group's seeds; it holds for
    these trained models. Over seeds (Student's t): of the differences of equal seeds where the
    groups have the same ones, else Welch's; it holds for training anew, and needs two seeds.
    """
    ours, theirs = group.seeds(measure.of), base.seeds(measure.of)
    return {
        "measure": measure.name,
        "unit": measure.unit,
        "mean": fmean(ours) - fmean(theirs),
        "over_images": _over_images(measure, group, base),
        "over_seeds": _over_seeds(ours, theirs, _same_seeds(group, base)),
    }


def _over_images(measure: Measure, group: Group, base: Group) -> float | None:
    if measure.per_image is None:
        return _over_units(group, base)
    paired = _image_means(measure, group) - _image_means(measure, base)
    return Z_95 * float(paired.std(ddof=1)) / math.sqrt(len(paired)) if len(paired) > 1 else None


def _image_means(measure: Measure, group: Group) -> np.ndarray:
    return np.mean([measure.per_image(run) for run in group.runs], axis=0)


def _over_units(group: Group, base: Group) -> float:
    """Half-width for the active units' share: the runs' own intervals, on the safe side."""
    widths = []
    for one in (group, base):
        intervals = [run.bound.active_units_interval for run in one.runs]
        shares = [run.bound.active_units for run in one.runs]
        pairs = zip(shares, intervals, strict=True)
        widths.append(fmean(max(s - low, high - s) for s, (low, high) in pairs))
    return 100.0 * sum(widths)


def _same_seeds(group: Group, base: Group) -> bool:
    return [run.seed for run in group.runs] == [run.seed for run in base.runs]


def _over_seeds(ours: Sequence[float], theirs: Sequence[float], paired: bool) -> float | None:
    if paired and len(ours) > 1:
        apart = [a - b for a, b in zip(ours, theirs, strict=True)]
        return float(student.ppf(0.975, len(apart) - 1)) * stdev(apart) / math.sqrt(len(apart))
    if paired or min(len(ours), len(theirs)) < 2:
        return None
    parts = [stdev(values) ** 2 / len(values) for values in (ours, theirs)]
    if sum(parts) == 0:
        return 0.0
    sizes = (len(ours), len(theirs))
    freedom = sum(parts) ** 2 / sum(p**2 / (n - 1) for p, n in zip(parts, sizes, strict=True))
    return float(student.ppf(0.975, freedom)) * math.sqrt(sum(parts))


def contents(runs: Sequence[Run]) -> dict:
    """Every figure of the comparison, as plain containers."""
    found, compared = groups(runs), measures(runs)
    base = found[0]
    first = runs[0].record
    return {
        "dataset": first["dataset"],
        "split": first["split"],
        "images": first["bound"]["images"],
        "protocol": [*dict.fromkeys(run.record["protocol"] for run in runs)],
        "groups": [
            {
                "label": group.label,
                "seeds": [run.seed for run in group.runs],
                "measures": [
                    {
                        "measure": measure.name,
                        "unit": measure.unit,
                        "runs": group.seeds(measure.of),
                        "mean": mean_and_sd(group.seeds(measure.of))[0],
                        "sd": mean_and_sd(group.seeds(measure.of))[1],
                    }
                    for measure in compared
                ],
                "kl": [mean_and_sd(values) for values in _per_layer(group, "kl")],
                "active": [mean_and_sd(values) for values in _per_layer(group, "active_per_layer")],
                "context": group.runs[0].record["context"],
                "active_by_threshold": np.mean(
                    [
                        np.array(run.record["active_by_threshold"]) / sum(run.bound.elements)
                        for run in group.runs
                    ],
                    axis=0,
                ).tolist(),
                "runs": [_row(run) for run in group.runs],
            }
            for group in found
        ],
        "base": base.label,
        "differences": [
            {
                "label": group.label,
                "measures": [difference(measure, group, base) for measure in compared],
            }
            for group in found[1:]
        ],
    }


def _per_layer(group: Group, name: str) -> list[tuple[float, ...]]:
    """A figure per layer: for each layer, the runs' values."""
    return list(zip(*(getattr(run.bound, name) for run in group.runs), strict=True))


def _row(run: Run) -> dict:
    """One run's own line."""
    return {
        "checkpoint": run.record["checkpoint"],
        "seed": run.seed,
        "likelihoods": run.record["likelihoods"],
        "nelbo": run.bound.nelbo,
        "nelbo_se": run.bound.nelbo_se,
        "kl": run.bound.kl,
        "active_units": run.bound.active_units,
        "active_units_interval": run.bound.active_units_interval,
    }
