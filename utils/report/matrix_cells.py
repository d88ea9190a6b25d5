"""What the collapse matrix reads from one finished run, and the measures by which runs compare."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from pydantic import BaseModel

from utils.errors import ConfigError
from utils.evaluation.bound import NllEstimate
from utils.evaluation.collapse import Z_95
from utils.evaluation.compared_runs import read_run
from utils.evaluation.record import REMEDY, ScoreRecord
from utils.files import read_json
from utils.report.content import NEGLIGIBLE_NATS, Estimate
from utils.runs.folder import RESULTS
from utils.tracking.sinks import METRICS

GROUPS = ("likelihood", "rate", "information", "use")  # and cost
ESTIMATOR = "iwae"  # a true bound on −log p(x), whatever the arm


class Lost(BaseModel, frozen=True):
    """By how many nats the bound is worse without a layer."""

    lost: float
    lost_se: float


class Layer(BaseModel, frozen=True):
    """What the matrix reads of a layer in report.json, which holds more, and in each version else.

    `information` is of the layer and those above it.
    """

    context: bool
    units: int
    kl: float
    active: int
    collapsed: int
    without: Lost
    information: Estimate
    saturated: bool


class Report(ScoreRecord, frozen=True):
    """What the matrix reads of report.json."""

    information_images: int
    layers: list[Layer]


@dataclass(frozen=True)
class CellRun:
    """A finished run of an arm: its report, its figures per image (N, …), its rows of epochs."""

    arm: str
    seed: int
    folder: Path
    report: Report
    per_image: dict[str, np.ndarray]
    epochs: list[dict]

    @property
    def likelihood(self) -> NllEstimate:
        """By the estimator of the matrix."""
        return next(e for e in self.report.likelihoods if e.estimator == ESTIMATOR)


def read_cell(arm: str, seed: int, folder: Path) -> CellRun:
    """The run in a folder, with the per-image figures that its report is about.

    Raises:
        ConfigError: if it is not finished, or one of its files is damaged.
    """
    path = folder / "report" / "report.json"
    try:
        report = Report.from_json(read_json(path, REMEDY), path)
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
        epochs = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder} is not a finished run with its report: {error}") from error
    run = CellRun(arm, seed, folder, report, _per_image(folder, report), epochs)
    if not epochs or not any(e.estimator == ESTIMATOR for e in report.likelihoods):
        raise ConfigError(f"{folder} lacks {ESTIMATOR}, or the rows of its epochs.")
    return run


def _per_image(folder: Path, report: Report) -> dict[str, np.ndarray]:
    """Of the scores of training's end or, where the report was made later, of those beside it."""
    for stem in (RESULTS, f"{report.split}_scores"):
        path = folder / f"{stem}.json"
        if path.exists() and path.with_suffix(".npz").exists():
            found = read_run(path)
            if found.record.likelihoods == report.likelihoods and found.bound == report.bound:
                return found.per_image
    raise ConfigError(f"{folder} has no scores that belong to its report.")


class LayerFigures(BaseModel, frozen=True):
    """One layer of one run."""

    context: bool
    kl: float  # nats
    active: float  # % of its units
    lost: float  # nats by which the bound is worse without it
    in_use: bool


class CellFigures(BaseModel, frozen=True):
    """Everything that the page shows of one run."""

    arm: str
    seed: int
    run: str  # the folder's name
    code: str | None
    values: dict[str, float]  # by measure
    active_interval: tuple[float, float]  # %, 95 % over images
    saturated: bool  # whether the top latent's information reached its ceiling
    layers: list[LayerFigures]
    epochs: list[int]
    kl: list[list[float]]  # nats on the validation set, for each layer at each epoch


def figures(cell: CellRun) -> CellFigures:
    """The figures of a run, six digits each where there are many."""
    layers = cell.report.layers
    rows = [row for row in cell.epochs if f"collapse/kl_{len(layers) - 1}" in row]
    return CellFigures(
        arm=cell.arm,
        seed=cell.seed,
        run=cell.folder.name,
        code=cell.report.code,
        values={measure.key: _digits(measure.of(cell)) for measure in MEASURES},
        active_interval=tuple(100.0 * share for share in cell.report.bound.active_units_interval),
        saturated=layers[0].saturated,
        layers=[_layer(layer) for layer in layers],
        epochs=[row["epoch"] for row in rows],
        kl=[[_digits(row[f"collapse/kl_{i}"], 4) for row in rows] for i in range(len(layers))],
    )


def _layer(layer: Layer) -> LayerFigures:
    return LayerFigures(
        context=layer.context,
        kl=_digits(layer.kl),
        active=_digits(100.0 * layer.active / layer.units),
        lost=_digits(layer.without.lost),
        in_use=in_use(layer),
    )


def _digits(value: float, count: int = 6) -> float:
    return float(f"{value:.{count}g}")


def in_use(layer: Layer, least: float = 0.0) -> bool:
    """Whether the bound is worse with this layer from its prior, beyond chance and `least` nats."""
    return layer.without.lost > max(least, Z_95 * layer.without.lost_se)


@dataclass(frozen=True)
class Measure:
    """A column of the matrix: a figure of a run; where it is a mean over images, also of each.

    group: which of the questions it answers, one of GROUPS or cost. step: of a count, the distance
    between neighbouring values. compared: whether arms are compared by it.
    """

    key: str
    group: str
    title: str
    unit: str
    explanation: str
    of: Callable[[CellRun], float]
    per_image: Callable[[CellRun], np.ndarray] | None = None
    decimals: int = 2
    step: Callable[[CellRun], float] | None = None
    compared: bool = True


def _share_of_one(cell: CellRun) -> float:
    """Of one latent, in %."""
    return 100.0 / len(cell.report.layers)


def _units(layers: Sequence[Layer]) -> int:
    return sum(layer.units for layer in layers)


def _top_half(cell: CellRun) -> Sequence[Layer]:
    return cell.report.layers[: math.ceil(len(cell.report.layers) / 2)]


def _active_in_top_half(cell: CellRun) -> float:
    top = _top_half(cell)
    return 100.0 * sum(layer.active for layer in top) / _units(top)


def _collapsed(cell: CellRun) -> float:
    layers = cell.report.layers
    return 100.0 * sum(layer.collapsed for layer in layers) / _units(layers)


def _loss_over_bound(cell: CellRun) -> float:
    """1 + what the loss adds to the bound over the bound's size: it may be negative."""
    last = trained_rows(cell.epochs)[-1]
    bound = last["train/reconstruction"] + last["train/kl"]
    nats = last["train/loss"] * cell.report.dims * math.log(2.0)
    return 1.0 + (nats - bound) / abs(bound)


def _seconds_per_epoch(cell: CellRun) -> float:
    first = cell.epochs[0]
    images = cell.report.config["dataset"]["data_module"]["batch_size"] * first["step"]
    speeds = [row["train/images_per_second"] for row in trained_rows(cell.epochs)]
    return images / first["epoch"] * fmean(1.0 / speed for speed in speeds)


def trained_rows(epochs: Sequence[dict]) -> list[dict]:
    """The records of the epochs in which a step counted; others have no figures of training."""
    return [row for row in epochs if "train/images_per_second" in row]


MEASURES: Sequence[Measure] = (
    Measure(
        "nll",
        "likelihood",
        "−log p(x)",
        "nats",
        f"per image, by {ESTIMATOR}; smaller is better",
        lambda cell: cell.likelihood.nll,
        lambda cell: cell.per_image[f"nll_{ESTIMATOR}"],
    ),
    Measure(
        "nelbo",
        "likelihood",
        "−ELBO",
        "nats",
        "per image; smaller is better",
        lambda cell: cell.report.bound.nelbo,
        lambda cell: cell.per_image["nelbo"],
    ),
    Measure(
        "kl",
        "rate",
        "KL",
        "nats",
        "of all latents",
        lambda cell: sum(cell.report.bound.kl),
        lambda cell: cell.per_image["kl"].sum(1),
    ),
    Measure(
        "kl_top",
        "rate",
        "KL, top",
        "nats",
        "of the top latent",
        lambda cell: cell.report.bound.kl[0],
        lambda cell: cell.per_image["kl"][:, 0],
    ),
    Measure(
        "in_use",
        "use",
        "in use",
        "%",
        "of the latents, those without which the bound is worse beyond its 95 % error",
        lambda cell: 100.0 * fmean(in_use(layer) for layer in cell.report.layers),
        decimals=0,
        step=_share_of_one,
    ),
    Measure(
        "worth",
        "use",
        f"worth {NEGLIGIBLE_NATS:g} nats",
        "%",
        f"of the latents, those in use without which the bound is worse by {NEGLIGIBLE_NATS:g} "
        "nats or more",
        lambda cell: 100.0 * fmean(in_use(layer, NEGLIGIBLE_NATS) for layer in cell.report.layers),
        decimals=0,
        step=_share_of_one,
    ),
    Measure(
        "active",
        "information",
        "active units",
        "%",
        "of all units, those whose mean varies with the image",
        lambda cell: 100.0 * cell.report.bound.active_units,
        decimals=1,
        step=lambda cell: 100.0 / _units(cell.report.layers),
    ),
    Measure(
        "active_top",
        "information",
        "active, top half",
        "%",
        "the same of the upper half of the latents",
        _active_in_top_half,
        decimals=1,
        step=lambda cell: 100.0 / _units(_top_half(cell)),
    ),
    Measure(
        "information",
        "information",
        "I(x; top)",
        "nats",
        "information of the top latent about the image",
        lambda cell: cell.report.layers[0].information.value,
    ),
    Measure(
        "collapsed",
        "rate",
        "collapsed",
        "%",
        "units with a KL under 0.01 nats for at least 99 % of the images",
        _collapsed,
        decimals=1,
        step=lambda cell: 100.0 / _units(cell.report.layers),
    ),
    Measure(
        "loss",
        "likelihood",
        "loss / −ELBO",
        "ratio",
        "at the end of training: over 1 the loss adds to the bound, under 1 it hides a part",
        _loss_over_bound,
        decimals=3,
        compared=False,
    ),
    Measure(
        "parameters",
        "cost",
        "parameters",
        "",
        "of the model",
        lambda cell: float(cell.report.parameters["parameters/all"]),
        decimals=0,
        compared=False,
    ),
    Measure(
        "seconds",
        "cost",
        "seconds an epoch",
        "s",
        "of training, on the machine as it was",
        _seconds_per_epoch,
        decimals=1,
        compared=False,
    ),
)
BY_KEY = {measure.key: measure for measure in MEASURES}
