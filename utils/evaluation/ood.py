"""Telling images of another data set by a model's layers: LLR>k (Havtorn et al. 2021).

    L     = E_q(z|x) [log p(x | z)] − KL of all layers                          a bound on log p(x)
    L>k   = the same with the k lowest layers drawn from their priors, without their KL
    LLR>k = L − L>k

L>k is what the top layers alone say of x. Details are what the lowest layers carry, and a model
knows those of other data too: L may be higher for these, LLR>k asks how much of it is details. Each
image's bounds share all noise, a binarisation included (but where a context is drawn from its
prior, what is below it gets other noise). `sample` draws the k lowest layers from
their priors, so that L>k is a bound as well; `mode` takes the priors' means, as Havtorn et al. do.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from datasets.loaders import EvaluationBatches
from model.latents import LatentAccess
from model.noise import Noise, NoisePurpose
from utils.processes import collectives

PRIORS = {"sample": 1.0, "mode": 0.0}  # temperatures of draws from the priors
REPLICATES = 1_000  # of the bootstrap
AT_ONCE = 2_000_000  # counts of images in replicates that are held at a time
TPR = 0.8


class Interval(BaseModel, frozen=True):
    """A figure with its 95 % interval, by a bootstrap over the images of both sides."""

    value: float
    low: float
    high: float


class Detection(BaseModel, frozen=True):
    """How well a score, the higher the more foreign, tells the other data set's images."""

    score: str
    prior: Literal["sample", "mode"] | None  # of the layers that are not inferred
    lowest: int | None  # k: how many these are
    inside: float  # the score's mean over the images of the model's data set
    outside: float  # … and of the other one
    auroc: Interval
    average_precision: Interval  # 0.5 by chance
    fpr80: Interval  # false positives where 80 % of the others are told


@dataclass(frozen=True)
class Score:
    """A score of every image of both data sets, (N,) float64 each."""

    name: str
    inside: Tensor
    outside: Tensor
    prior: str | None = None
    lowest: int | None = None


@torch.no_grad()
def layered_bounds(
    model: LatentAccess,
    batches: EvaluationBatches,
    seed: int,
    samples: int,
    tick: Callable[[int], None],
) -> dict[str, Tensor]:
    """By prior, L>k in nats for k = 0 (L itself) … L: (N, layers + 1), means over `samples`."""
    model.eval()
    layers = model.num_latents
    temperatures = list(PRIORS.values()) if model.takes_means else [PRIORS["sample"]]
    ids, rows = [], []
    for batch in batches:
        total = 0.0
        for sample in range(samples):
            keys = (batch.ids, seed, NoisePurpose.FOREIGN, sample)
            bounds = [
                _bound(model, batch.x, layers - k, temperature, Noise.keyed(*keys))
                for temperature in temperatures
                for k in range(bool(temperature < 1.0), layers + 1)  # L is the same for both
            ]
            total = total + torch.stack(bounds, 1)
        ids.append(batch.ids.cpu())
        rows.append((total / samples).cpu())
        tick(len(batch.ids))
    table = collectives.by_image(ids, rows, len(batches.images))
    sampled, others = table[:, : layers + 1], table[:, layers + 1 :]
    if not model.takes_means:
        return {"sample": sampled}
    return {"sample": sampled, "mode": torch.cat([sampled[:, :1], others], 1)}


def _bound(model: LatentAccess, x: Tensor, kept: int, temperature: float, noise: Noise) -> Tensor:
    """L with the top `kept` layers inferred: (B,) nats, float64."""
    keep = [layer < kept for layer in range(model.num_latents)]
    output = model.infer(x, keep, noise=noise, prior_temperature=temperature)
    return -(output.reconstruction.double() + output.kl.double().sum(1))


def complexity(images: Tensor) -> Tensor:
    """Bits of each image (N, C, H, W) uint8 as a PNG file: (N,) float64."""
    from PIL import Image  # not at every start

    sizes = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, "PNG")
        sizes.append(8.0 * file.tell())
    return torch.tensor(sizes, dtype=torch.float64)


def score_both(
    model: LatentAccess,
    batches: Sequence[EvaluationBatches],
    seed: int,
    samples: int,
    tick: Callable[[int], None],
) -> list[Score]:
    """The baseline of input complexity, −L, and LLR>k for every k and both ways with the priors.

    batches: as many images of the model's own data set as of the other one. Collective.
    """
    inside, outside = (layered_bounds(model, each, seed, samples, tick) for each in batches)
    found = [Score("PNG bits", *(complexity(each.images.cpu()) for each in batches))]
    found.append(Score("−ELBO", -inside["sample"][:, 0], -outside["sample"][:, 0]))
    for prior in inside:
        ratios = [bounds[prior][:, :1] - bounds[prior] for bounds in (inside, outside)]
        for k in range(1, ratios[0].shape[1]):
            pair = (ratio[:, k] for ratio in ratios)
            found.append(Score(f"LLR>{k}", *pair, prior, k))
    return found


def detect(score: Score, seed: int, replicates: int = REPLICATES) -> Detection:
    """The figures of one score, with intervals."""
    values = torch.cat([score.inside, score.outside])
    levels, index = torch.unique(-values, return_inverse=True)  # the highest score comes first
    n = len(score.inside)
    sides = [index[n:].numpy(), index[:n].numpy()]
    once = [np.bincount(side, minlength=len(levels))[None] for side in sides]
    drawn = [_figures(*pair) for pair in _resampled(sides, len(levels), seed, replicates)]
    low, high = np.quantile(np.concatenate(drawn, 1), [0.025, 0.975], axis=1)
    intervals = [
        Interval(value=value, low=a, high=b)
        for value, a, b in zip(_figures(*once)[:, 0].tolist(), low, high, strict=True)
    ]
    return Detection(
        score=score.name,
        prior=score.prior,
        lowest=score.lowest,
        inside=score.inside.mean().item(),
        outside=score.outside.mean().item(),
        auroc=intervals[0],
        average_precision=intervals[1],
        fpr80=intervals[2],
    )


def _resampled(
    sides: list[np.ndarray], levels: int, seed: int, replicates: int
) -> Iterator[list[np.ndarray]]:
    """Of replicates some at a time, and for each side: counts of images at each level (R, levels).

    sides: every image's level. Each side is drawn from with replacement, as many as it has.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, AT_ONCE // levels)
    for first in range(0, replicates, at_once):
        rows = min(at_once, replicates - first)
        counts = []
        for side in sides:
            drawn = side[generator.integers(len(side), size=(rows, len(side)))]
            drawn += levels * np.arange(rows)[:, None]
            found = np.bincount(drawn.ravel(), minlength=rows * levels)
            counts.append(found.reshape(rows, levels))
        yield counts


def _figures(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUROC, average precision and FPR at 80 % TPR: (3, R).

    positive, negative: counts of images at each level of the score (R, levels), the highest first.
    Equal scores count half in the AUROC, and are one threshold.
    """
    tp, fp = positive.cumsum(1), negative.cumsum(1)
    total_p, total_n = tp[:, -1], fp[:, -1]
    auroc = (negative * (tp - 0.5 * positive)).sum(1) / (total_p * total_n)
    precision = (positive * tp / np.maximum(tp + fp, 1)).sum(1) / total_p
    reached = (tp >= TPR * total_p[:, None] - 1e-9).argmax(1)
    return np.stack([auroc, precision, np.take_along_axis(fp, reached[:, None], 1)[:, 0] / total_n])


class OodRecord(BaseModel, frozen=True):
    """What ood.json holds: which images, by which model, and every score's figures."""

    name: str
    checkpoint: str
    checkpoint_digest: str
    inside: str  # the data set of the model's side
    outside: str
    split: str
    images: int  # of each
    digests: tuple[str, str]  # of the images
    layers: list[str]  # names, from the top
    samples: int
    noise_seed: int
    replicates: int
    detections: list[Detection]

    def tracker_values(self) -> dict[str, float]:
        """The main figures under the tracker's keys, as ood/auroc/LLR_1_mode."""
        values = {}
        for one in self.detections:
            name = re.sub(r"[^A-Za-z0-9]+", "_", f"{one.score}_{one.prior or ''}").strip("_")
            for figure in ("auroc", "average_precision", "fpr80"):
                values[f"ood/{figure}/{name}"] = getattr(one, figure).value
        return values
