"""Models side by side: scores, means over seeds, and every group's difference from the first."""

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
from pydantic import BaseModel

from utils.evaluation.bound import NllEstimate
from utils.evaluation.compared_runs import Group, Run, differing_settings, groups
from utils.evaluation.differences import Difference, Measure, difference, measures


class MeasureSummary(BaseModel, frozen=True):
    """A measure of a group: of every run, and over the seeds."""

    measure: str
    unit: str
    runs: list[float]
    mean: float
    sd: float | None  # None for a single seed


class RunSummary(BaseModel, frozen=True):
    """One run's own figures."""

    checkpoint: str
    checkpoint_name: str
    name: str
    seed: int
    likelihoods: list[NllEstimate]
    nelbo: float
    nelbo_se: float
    kl: list[float]
    active_units: float
    active_units_interval: tuple[float, float]


class GroupSummary(BaseModel, frozen=True):
    """A group's figures; per layer from the top: (mean, standard deviation) over seeds."""

    letter: str  # A, B, …: the group's name in tables and drawings
    label: str
    settings: dict[str, Any]  # those that tell the groups apart; None where a group has none
    seeds: list[int]
    measures: list[MeasureSummary]
    kl: list[tuple[float, float | None]]  # nats
    active: list[tuple[float, float | None]]  # share of the layer's units
    context: bool
    active_by_threshold: list[float]  # share of all units over each of THRESHOLDS, mean over seeds
    runs: list[RunSummary]


class GroupDifference(BaseModel, frozen=True):
    """A group's measures less those of the first group."""

    letter: str
    label: str
    measures: list[Difference]


class Comparison(BaseModel, frozen=True):
    """Every figure of a comparison, as compare.json holds it."""

    dataset: str
    split: str
    images: int
    protocol: list[str]
    groups: list[GroupSummary]
    base: str  # the label of the first group, A
    differences: list[GroupDifference]


def compare(runs: Sequence[Run]) -> Comparison:
    """Group the runs, average over seeds, and compare every group with the first.

    Raises:
        ConfigError: if the runs cannot be compared.
    """
    grouped, compared = groups(runs), measures(runs)
    base, first = grouped[0], runs[0].record
    letters = list(map(_letter, range(len(grouped))))
    differing = differing_settings([group.runs[0] for group in grouped])
    return Comparison(
        dataset=first.dataset,
        split=first.split,
        images=first.bound.images,
        protocol=[
            *dict.fromkeys(f"{run.record.protocol}, {run.record.conditions_text}" for run in runs)
        ],
        groups=[
            _summary(letter, group, compared, differing)
            for letter, group in zip(letters, grouped, strict=True)
        ],
        base=base.label,
        differences=[
            GroupDifference(
                letter=letter,
                label=group.label,
                measures=[difference(measure, group, base) for measure in compared],
            )
            for letter, group in zip(letters[1:], grouped[1:], strict=True)
        ],
    )


def _letter(index: int) -> str:
    """A … Z, then AA, AB, …, as spreadsheets count."""
    above, last = divmod(index, 26)
    return (_letter(above - 1) if above else "") + chr(ord("A") + last)


def _summary(
    letter: str, group: Group, compared: Sequence[Measure], differing: Sequence[str]
) -> GroupSummary:
    shares = [
        np.array(run.record.active_by_threshold) / sum(run.bound.elements) for run in group.runs
    ]
    return GroupSummary(
        letter=letter,
        label=group.label,
        settings={key: group.runs[0].settings.get(key) for key in differing},
        seeds=group.seeds,
        measures=[_measure_summary(group, measure) for measure in compared],
        kl=_per_layer([run.bound.kl for run in group.runs]),
        active=_per_layer([run.bound.active_per_layer for run in group.runs]),
        context=group.runs[0].record.context,
        active_by_threshold=np.mean(shares, axis=0).tolist(),
        runs=[_run_summary(run) for run in group.runs],
    )


def _measure_summary(group: Group, measure: Measure) -> MeasureSummary:
    values = group.values(measure.of)
    mean, sd = mean_and_sd(values)
    return MeasureSummary(measure=measure.name, unit=measure.unit, runs=values, mean=mean, sd=sd)


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation if there are two values or more."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def _per_layer(runs: Sequence[Sequence[float]]) -> list[tuple[float, float | None]]:
    """Mean and standard deviation over the runs, for each layer."""
    return [mean_and_sd(values) for values in zip(*runs, strict=True)]


def _run_summary(run: Run) -> RunSummary:
    return RunSummary(
        checkpoint=run.record.checkpoint,
        checkpoint_name=run.record.checkpoint_name,
        name=run.record.name,
        seed=run.seed,
        likelihoods=run.record.likelihoods,
        nelbo=run.bound.nelbo,
        nelbo_se=run.bound.nelbo_se,
        kl=run.bound.kl,
        active_units=run.bound.active_units,
        active_units_interval=run.bound.active_units_interval,
    )
