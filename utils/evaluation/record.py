"""The record of a score: what results.json and <split>_scores.json hold, typed."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from model.objective import bits_per_dim
from utils.errors import ConfigError
from utils.evaluation.bound import NllEstimate
from utils.evaluation.collapse import THRESHOLDS, Amount, CollapseReport, Number
from utils.evaluation.quality import ImageQuality
from utils.files import read_json
from utils.settings.kinds import accepts
from utils.settings.schema.task import EvaluationTask, Split

Shown = Annotated[str, Field(max_length=200), accepts(str.isprintable)]  # a text on pages
REMEDY = "remove it, and evaluate the checkpoint again (training does so itself, else task=test)"


def conditions(task: EvaluationTask) -> dict[str, int | str]:
    """What scores must have in common to be compared, beside images and numbers of samples.

    noise_seed: with another one, a Bernoulli model is scored on other binarised images.
    """
    return {"noise_seed": task.noise_seed}


def checkpoint_name(path: str, digest: str) -> str:
    """A checkpoint's file, run and fingerprint: these hold wherever the files are moved."""
    *_, run, folder, file = ("", "", *Path(path).parts)
    name = f"{file} of {run}" if folder == "checkpoints" and run else file
    return f"{name} (SHA-256 {digest}…)" if digest else name


class ScoreRecord(BaseModel, frozen=True, defer_build=True):
    """Every figure of a model on a split, and what it was evaluated on and from.

    Files of earlier versions lack `code`, `parameters`, `conditions`, `quality` or `seconds`; files
    without a user's metrics lack `metrics`.
    """

    name: Shown
    seed: int  # train.seed
    code: str | None = None  # the commit
    parameters: dict[str, int] = {}
    checkpoint: str
    checkpoint_digest: str = ""
    dataset: Shown
    split: Split
    images_digest: str
    protocol: str  # what −log p(x) is a likelihood of
    conditions: dict[str, int | str] | None = Field(None, exclude_if=lambda value: value is None)
    dims: Number
    context: bool  # whether layer 0 is a context
    bound: CollapseReport
    active_by_threshold: Annotated[  # active units of all layers, over each of these
        list[Amount], Field(min_length=len(THRESHOLDS), max_length=len(THRESHOLDS))
    ]
    likelihoods: list[NllEstimate]
    quality: ImageQuality | None = None
    metrics: dict[str, list[float]] = Field({}, exclude_if=lambda metrics: not metrics)
    config: dict[str, Any]
    seconds: float | None = None

    @classmethod
    def read(cls, path: Path) -> "ScoreRecord":
        """The record in a file.

        Raises:
            ConfigError: if the file is cut short or holds something else.
        """
        return cls.from_json(read_json(path, REMEDY), path)

    @classmethod
    def from_json(cls, content: dict, source: Path) -> "ScoreRecord":
        """The record from a file's content; source names the file in the error.

        Raises:
            ConfigError: if the content is not that of a score.
        """
        try:
            record = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"{source} does not hold a model's scores ({where}: {first['msg']}): {REMEDY}."
            ) from error
        per_layer = {f"bound.{name}": figures for name, figures in record.bound}
        per_layer |= {f"metrics.{name}": figures for name, figures in record.metrics.items()}
        for name, figures in per_layer.items():
            if isinstance(figures, list) and len(figures) != len(record.bound.kl):
                raise ConfigError(
                    f"{source} does not hold a model's scores ({name} has {len(figures)} layers of "
                    f"{len(record.bound.kl)}): {REMEDY}."
                )
        return record

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint as pages name it."""
        return checkpoint_name(self.checkpoint, self.checkpoint_digest)

    @property
    def conditions_text(self) -> str:
        """The conditions as tables name them; in earlier versions the noise went by train.seed."""
        if self.conditions is None:
            return f"noise of train.seed {self.seed}, by an earlier version"
        return ", ".join(f"{name}: {value}" for name, value in self.conditions.items())

    def to_json(self) -> dict:
        """The file's content, in the order of its keys."""
        return self.model_dump(by_alias=True)

    def tracker_values(self) -> dict[str, float]:
        """The figures under the tracker's keys, `<split>/…`."""
        bound, split = self.bound, self.split
        values = {
            f"{split}/nelbo": bound.nelbo,
            f"{split}/reconstruction": bound.reconstruction,
            f"{split}/kl": sum(bound.kl),
            f"{split}/active_units": bound.active_units,
            **self.parameters,
        }
        for estimate in self.likelihoods:
            nll = estimate.nll
            values[f"{split}/nll_{estimate.estimator}"] = nll
            values[f"{split}/bpd_{estimate.estimator}"] = bits_per_dim(nll, self.dims)
        if self.quality is not None:
            for name in ("fid", "reconstruction_mse", "reconstruction_psnr"):
                if (figure := getattr(self.quality, name)) is not None:
                    values[f"{split}/{name}"] = figure
        per_layer = {"kl": bound.kl, "active_units": bound.active_per_layer, **self.metrics}
        for layer in range(len(bound.kl)):
            for name, figures in per_layer.items():
                values[f"{split}/{name}_{layer}"] = figures[layer]
        return values
