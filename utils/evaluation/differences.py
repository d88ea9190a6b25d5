"""Differences between groups of runs, with 95 % intervals over images and over seeds."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from pydantic import BaseModel
from scipy import stats

from model.objective import bits_per_dim
from utils.errors import ConfigError
from utils.evaluation.bound import NllEstimate
from utils.evaluation.collapse import Z_95
from utils.evaluation.compared_runs import Group, Run


@dataclass(frozen=True)
class Measure:
    """A figure of a run; where it is a mean over images, also of every image."""

    name: str
    unit: str
    of: Callable[[Run], float]
    per_image: Callable[[Run], np.ndarray] | None


class Difference(BaseModel, frozen=True):
    """A measure's difference between two groups, with half-widths of its 95 % intervals.

    Over images: of the images' own differences, each averaged over a group's seeds; it holds for
    these trained models. Over seeds (Student's t): of the differences of equal seeds if both groups
    have the same ones, else Welch's; it holds for training anew, and needs two seeds.
    """

    measure: str
    unit: str
    mean: float
    over_images: float | None
    over_seeds: float | None


def difference(measure: Measure, group: Group, base: Group) -> Difference:
    """group − base."""
    values, base_values = group.values(measure.of), base.values(measure.of)
    return Difference(
        measure=measure.name,
        unit=measure.unit,
        mean=fmean(values) - fmean(base_values),
        over_images=_over_images(measure, group, base),
        over_seeds=_over_seeds(values, base_values, group.seeds == base.seeds),
    )


def measures(runs: Sequence[Run]) -> list[Measure]:
    """The figures to compare: the estimators that all runs share, and those of every run.

    Raises:
        ConfigError: if an estimator was computed with different numbers of samples.
    """
    first, compared = runs[0].record, []
    for name in [estimate.estimator for estimate in first.likelihoods]:
        estimates = [_estimate(run, name) for run in runs]
        if None in estimates:
            continue
        title, column = _estimator_title(name, estimates), f"nll_{name}"
        compared.append(_averaged(title, "nats", column, 1.0))
        compared.append(_averaged(title, "bits/dim", column, bits_per_dim(1.0, first.dims)))
    return [
        *compared,
        _averaged("−elbo", "nats", "nelbo", 1.0),
        _averaged("reconstruction", "nats", "reconstruction", 1.0),
        Measure("KL", "nats", lambda run: float(_total_kl(run).mean()), _total_kl),
        Measure("active units", "%", lambda run: 100.0 * run.bound.active_units, None),
    ]


def _estimate(run: Run, estimator: str) -> NllEstimate | None:
    return next((e for e in run.record.likelihoods if e.estimator == estimator), None)


def _estimator_title(name: str, estimates: Sequence[NllEstimate]) -> str:
    """The estimator with its numbers of samples, which must be the same in all runs."""
    counts = sorted({f"K = {e.num_samples}" for e in estimates})
    protocols = sorted({e.protocol for e in estimates} - {""})
    if len(counts) > 1 or len(protocols) > 1:
        raise ConfigError(
            f"The runs' {name} has {' and '.join(counts + protocols)}: name their checkpoints, and "
            "model.is_k=… (model.is_k_paths=…, model.is_k_per_context=…), to evaluate them alike."
        )
    return ", ".join([name, *counts, *protocols])


def _averaged(name: str, unit: str, column: str, scale: float) -> Measure:
    return Measure(
        name,
        unit,
        lambda run: scale * float(run.per_image[column].mean()),
        lambda run: scale * run.per_image[column],
    )


def _total_kl(run: Run) -> np.ndarray:
    return run.per_image["kl"].sum(1)


def _over_images(measure: Measure, group: Group, base: Group) -> float | None:
    if measure.per_image is None:
        return _over_units(group, base)
    paired = _image_means(measure, group) - _image_means(measure, base)
    return Z_95 * float(paired.std(ddof=1)) / math.sqrt(len(paired)) if len(paired) > 1 else None


def _image_means(measure: Measure, group: Group) -> np.ndarray:
    return np.mean([measure.per_image(run) for run in group.runs], axis=0)


def _over_units(group: Group, base: Group) -> float:
    """Half-width for the active units' share in %, conservative: from the runs' own intervals."""
    widths = []
    for runs in (group.runs, base.runs):
        intervals = [run.bound.active_units_interval for run in runs]
        shares = [run.bound.active_units for run in runs]
        pairs = zip(shares, intervals, strict=True)
        widths.append(fmean(max(s - low, high - s) for s, (low, high) in pairs))
    return 100.0 * sum(widths)


def _over_seeds(values: Sequence[float], base: Sequence[float], paired: bool) -> float | None:
    """Half-width over seeds, by Student's t of paired differences, else by Welch's t."""
    if min(len(values), len(base)) < 2:
        return None
    with warnings.catch_warnings():  # scipy warns of seeds without spread; the interval is right
        warnings.simplefilter("ignore", RuntimeWarning)
        test = (
            stats.ttest_rel(values, base)
            if paired
            else stats.ttest_ind(values, base, equal_var=False)
        )
        low, high = test.confidence_interval(0.95)
    return float(high - low) / 2.0
