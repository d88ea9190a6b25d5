"""task: what to do, a group of settings for each."""

import os
from typing import Annotated, Literal, Union

from pydantic import AfterValidator, Field

from model.estimators import ESTIMATORS
from utils.settings.kinds import (
    Wanted,
)
from utils.settings.schema.types import Count, Group, Seed, Text

Split = Literal["train", "validation", "test"]
NumImages = Count | None
LICENSE = r"^[a-z0-9][a-z0-9.-]{0,40}$"  # as the Hub names them
Output = Annotated[Text, AfterValidator(os.path.expanduser), Wanted("a folder")] | None
Estimators = list[Annotated[Text, Wanted(f"one of {', '.join(ESTIMATORS)}")]]
Layers = (
    Annotated[
        list[Annotated[int, Field(ge=0)]],
        Field(min_length=1),
        Wanted("a list of layers, 0 on top, as in [0, 2]"),
    ]
    | None
)
InformationImages = Annotated[int, Field(ge=2, le=10_000)]
ProbeImages = Annotated[int, Field(ge=0, le=10_000)]


class EvaluationTask(Group):
    """A task that draws random numbers of its own, apart from those of training."""

    noise_seed: Seed = 0  # earlier versions recorded none


class TrainTask(EvaluationTask):
    """task=train."""

    name: Literal["train"]
    force: bool
    estimators: Estimators
    report: bool
    mi_images: InformationImages
    mi_queries: NumImages = None  # earlier versions took all
    probe_images: ProbeImages = 1000  # earlier versions had no probes


class ScoreTask(EvaluationTask):
    """task=test."""

    name: Literal["test"]
    split: Split
    num_images: NumImages
    estimators: Estimators
    output: Output


class ReportTask(EvaluationTask):
    """task=report."""

    name: Literal["report"]
    split: Split
    num_images: NumImages
    estimators: Estimators
    mi_images: InformationImages
    mi_queries: NumImages = None  # earlier versions took all
    probe_images: ProbeImages = 1000  # earlier versions had no probes
    output: Output


class ExportTask(EvaluationTask):
    """task=export."""

    name: Literal["export"]
    split: Split
    num_images: NumImages
    estimators: Estimators
    mi_images: InformationImages
    mi_queries: NumImages
    probe_images: ProbeImages
    report: bool
    license: Annotated[str, Field(pattern=LICENSE), Wanted("as in mit or cc-by-4.0")]
    output: Output


class CompareTask(EvaluationTask):
    """task=compare."""

    name: Literal["compare"]
    split: Split
    num_images: NumImages
    estimators: Estimators
    output: Output


class MatrixTask(EvaluationTask):
    """task=matrix."""

    name: Literal["matrix"]
    arms: Annotated[list[Text], Field(min_length=1)]
    crossed: list[Text] = Field(alias="with")
    seeds: Annotated[list[Seed], Field(min_length=1)]
    jobs: Annotated[int, Field(ge=0, le=1024)]
    mi_images: InformationImages
    output: Output


class SampleTask(EvaluationTask):
    """task=sample."""

    name: Literal["sample"]
    num_images: Count
    temperature: Annotated[float, Field(ge=0, le=10)]
    output: Output


class ReconstructTask(EvaluationTask):
    """task=reconstruct."""

    name: Literal["reconstruct"]
    split: Split
    num_images: Count
    output: Output


class EncodeTask(EvaluationTask):
    """task=encode."""

    name: Literal["encode"]
    split: Split
    num_images: NumImages
    layers: Layers
    values: Literal["mean", "sample"]
    shard_mb: Annotated[int, Field(ge=1, le=10_000)]
    output: Output


class InterpolateTask(Group):
    """task=interpolate."""

    name: Literal["interpolate"]
    split: Split
    pairs: Annotated[int, Field(ge=1, le=50)]
    layers: Layers
    steps: Annotated[int, Field(ge=2, le=100)]
    output: Output


class OodTask(EvaluationTask):
    """task=ood."""

    name: Literal["ood"]
    split: Split
    num_images: NumImages
    samples: Annotated[int, Field(ge=1, le=1000)]
    output: Output


class SyncTask(Group):
    """task=sync."""

    name: Literal["sync"]


class CheckDataTask(Group):
    """task=check_data."""

    name: Literal["check_data"]
    output: Output


Task = Union[  # noqa: UP007  a discriminated union is built of these
    TrainTask,
    ScoreTask,
    ReportTask,
    ExportTask,
    CompareTask,
    MatrixTask,
    SampleTask,
    ReconstructTask,
    EncodeTask,
    InterpolateTask,
    OodTask,
    SyncTask,
    CheckDataTask,
]
TASKS = {task.model_fields["name"].annotation.__args__[0]: task for task in Task.__args__}
