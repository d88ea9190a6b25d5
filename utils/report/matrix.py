"""The collapse matrix: arms × seeds, rate, information and use kept apart, and what is resolved.

Differences are from the first arm, of equal seeds. The reading rule, fixed before any result:

    helps    a larger share of latents in use, or more information in the top one, and −log p(x)
             not worse
    trades   the same, and −log p(x) worse
    pads     a higher KL, but neither a larger share in use nor more information in the top one
    worse    −log p(x) worse, and none of these
    not resolved   otherwise

"More", "higher", and "worse" as a verdict, are paired t-tests over seeds at 5 %, two-sided, each
measure's p corrected over the arms by Holm's method. A correction would let harm pass as "not
worse": between helps and trades −log p(x)'s own 95 % interval decides, uncorrected.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

import numpy as np
from pydantic import BaseModel, Field
from scipy import stats

from utils.errors import ConfigError
from utils.evaluation.collapse import Z_95
from utils.report.matrix_cells import MEASURES, CellFigures, CellRun, Measure, figures

LEVEL = 0.05  # of the tests behind a verdict
NOT_RESOLVED = "not resolved"


class Change(BaseModel, frozen=True):
    """A measure's mean difference from the first arm, and half-widths of its 95 % intervals.

    p: of the paired t-test over seeds, corrected over the arms. What the seeds are too few for, or
    is no mean over images, is None.
    """

    mean: float
    over_images: float | None
    over_seeds: float | None
    p: float | None

    @property
    def direction(self) -> int:
        """1 or −1 where it is resolved over seeds, else 0."""
        if self.p is None or self.p >= LEVEL:
            return 0
        return 1 if self.mean > 0 else -1

    @property
    def above(self) -> bool:
        """Whether its own 95 % interval over seeds lies above 0."""
        return self.over_seeds is not None and self.mean > self.over_seeds


class ArmSummary(BaseModel, frozen=True):
    """An arm: by measure its mean and 95 % half-width over seeds, and its change."""

    label: str
    settings: dict[str, str]
    seeds: list[int]
    means: dict[str, tuple[float, float | None]]
    changes: dict[str, Change]  # empty for the first arm, and without a seed in common with it
    verdict: str  # empty for the first arm


class Matrix(BaseModel, frozen=True):
    """Every figure of the page, as matrix.json holds it."""

    name: str  # of the experiment
    dataset: str
    split: str
    images: int
    protocol: str
    num_samples: str  # K of the estimator of −log p(x)
    information_images: int
    epochs: int
    arms: list[ArmSummary]  # the first is the one that the others are compared with
    cells: list[CellFigures]
    missing: dict[str, str] = Field({})  # by cell, why

    @property
    def versions(self) -> list[str]:
        """Of the code that the runs were made by."""
        return sorted({str(cell.code) for cell in self.cells})

    def of_arm(self, label: str) -> list[CellFigures]:
        """An arm's runs, by seed."""
        return sorted((c for c in self.cells if c.arm == label), key=lambda cell: cell.seed)


def build_matrix(
    runs: Sequence[CellRun], settings: Mapping[str, dict[str, str]], missing: Mapping[str, str]
) -> Matrix:
    """The matrix of these runs; settings: of every arm, in the page's order.

    Raises:
        ConfigError: if they were scored on different images, or the first arm has none.
    """
    by_arm = {label: [run for run in runs if run.arm == label] for label in settings}
    base = next(iter(by_arm))
    if not by_arm[base]:
        raise ConfigError(f"No run of {base} is finished, from which the other arms would differ.")
    _check_alike(runs)
    changes = {label: _changes(own, by_arm[base]) for label, own in by_arm.items() if label != base}
    corrected = holm(changes)
    report = by_arm[base][0].report
    return Matrix(
        name=report.name,
        dataset=report.dataset,
        split=report.split,
        images=report.bound.images,
        protocol=report.protocol,
        num_samples=f"{by_arm[base][0].likelihood.num_samples:,}",
        information_images=report.information_images,
        epochs=max(run.epochs[-1]["epoch"] for run in runs),
        arms=[
            _summary(label, own, settings[label], corrected.get(label))
            for label, own in by_arm.items()
            if own
        ],
        cells=[figures(run) for own in by_arm.values() for run in own],
        missing=dict(missing),
    )


def verdict(changes: Mapping[str, Change]) -> str:
    """What the reading rule says of an arm's changes."""
    if not changes:
        return NOT_RESOLVED
    if changes["in_use"].direction > 0 or changes["information"].direction > 0:
        return "trades" if changes["nll"].above else "helps"
    if changes["kl"].direction > 0:
        return "pads"
    return "worse" if changes["nll"].direction > 0 else NOT_RESOLVED


def holm(changes: Mapping[str, Mapping[str, Change]]) -> dict[str, dict[str, Change]]:
    """The changes with each measure's p corrected over the arms (Holm 1979)."""
    corrected = {label: dict(own) for label, own in changes.items()}
    for key in [measure.key for measure in MEASURES if measure.compared]:
        tested = [(label, own[key].p) for label, own in changes.items() if key in own]
        tested = sorted(((label, p) for label, p in tested if p is not None), key=lambda t: t[1])
        largest = 0.0
        for rank, (label, p) in enumerate(tested):
            largest = max(largest, min(1.0, (len(tested) - rank) * p))
            corrected[label][key] = changes[label][key].model_copy(update={"p": largest})
    return corrected


def half_width(values: Sequence[float], step: float = 0.0) -> float | None:
    """Of the mean's 95 % interval by Student's t; None for a single value."""
    error = _standard_error(values, step)
    return None if error is None else float(stats.t.ppf(0.975, len(values) - 1)) * error


def p_value(values: Sequence[float], step: float = 0.0) -> float | None:
    """Two-sided, of the t-test that the mean is 0; None for a single value, or without spread."""
    error = _standard_error(values, step)
    if not error:
        return None
    return float(2.0 * stats.t.sf(abs(fmean(values)) / error, len(values) - 1))


def _standard_error(values: Sequence[float], step: float) -> float | None:
    """Of the mean. step: of counts that the values are differences of.

    Equal differences of counts are not known exactly: the standard deviation is at least that of
    two rounding errors, step/√6.
    """
    if len(values) < 2:
        return None
    return max(stdev(values), step / math.sqrt(6.0)) / math.sqrt(len(values))


def _check_alike(runs: Sequence[CellRun]) -> None:
    """Refuse runs whose scores share no differences."""
    first = runs[0]
    for run in runs:
        trouble = None
        if run.report.images_digest != first.report.images_digest:
            trouble = f"was scored on other images than {first.folder}"
        elif (own := run.report.protocol) != first.report.protocol:
            trouble = f"has a likelihood of another kind ({own}) than {first.folder}"
        elif (samples := run.likelihood.num_samples) != first.likelihood.num_samples:
            trouble = f"was scored with K = {samples:,}, and {first.folder} with another K"
        if trouble:
            raise ConfigError(
                f"{run.folder} {trouble}: train one of the two anew, under another name=… or in "
                "another runs_dir=…."
            )


def _summary(
    label: str,
    own: Sequence[CellRun],
    settings: dict[str, str],
    changes: dict[str, Change] | None,
) -> ArmSummary:
    means = {}
    for measure in MEASURES:
        values = [measure.of(run) for run in own]
        counted_alike = measure.step and len(set(values)) == 1  # no spread to tell an interval from
        means[measure.key] = fmean(values), None if counted_alike else half_width(values)
    return ArmSummary(
        label=label,
        settings=settings,
        seeds=[run.seed for run in own],
        means=means,
        changes=changes or {},
        verdict="" if changes is None else verdict(changes),
    )


def _changes(own: Sequence[CellRun], base: Sequence[CellRun]) -> dict[str, Change]:
    """An arm's change of every compared measure, with uncorrected p; {} without equal seeds."""
    by_seed = {run.seed: run for run in base}
    pairs = [(run, by_seed[run.seed]) for run in own if run.seed in by_seed]
    compared = [measure for measure in MEASURES if measure.compared]
    return {measure.key: _change(measure, pairs) for measure in compared} if pairs else {}


def _change(measure: Measure, pairs: Sequence[tuple[CellRun, CellRun]]) -> Change:
    differences = [measure.of(run) - measure.of(other) for run, other in pairs]
    step = measure.step(pairs[0][0]) if measure.step else 0.0
    return Change(
        mean=fmean(differences),
        over_images=_over_images(measure, pairs),
        over_seeds=half_width(differences, step),
        p=p_value(differences, step),
    )


def _over_images(measure: Measure, pairs: Sequence[tuple[CellRun, CellRun]]) -> float | None:
    """Half-width over images of their differences, each averaged over the seeds."""
    if measure.per_image is None:
        return None
    paired = np.mean([measure.per_image(a) - measure.per_image(b) for a, b in pairs], axis=0)
    return Z_95 * float(paired.std(ddof=1)) / math.sqrt(len(paired)) if len(paired) > 1 else None
