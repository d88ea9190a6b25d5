"""Whole-split evaluation: the bound with its collapse report, and importance-sampled likelihoods.

Noise is a function of (seed, purpose, image, sample): no figure depends on the batch size, the
chunk size or the number of processes, beyond the order of floating-point sums.
"""

from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from model.ladder_vae import MAX_ROWS
from model.noise import Noise
from utils.evaluation.collapse import Collapse, CollapseStatistics, mean_and_error
from utils.processes import collectives

POSTERIOR, LIKELIHOOD = 101, 103  # purposes that key the noise apart
IMAGES_AT_ONCE = 32  # whose samples are drawn together: a thousand each take a while
ENOUGH_SAMPLES = 3.0  # effective ones, under which a warning goes with the figure
MEMORY_SHARE = 0.1  # of what is free, for the rows decoded at once
MAPS_PER_ROW = 8


@dataclass(frozen=True)
class Likelihood:
    """−log p(x) in nats per image, with its standard error over images."""

    estimator: str
    num_samples: int
    prior_samples: int | None  # diffusion paths, where the estimator draws any
    nll: float
    nll_se: float
    ess: float  # effective number of the num_samples weights, mean over images
    images: int

    @property
    def warning(self) -> str | None:
        """What to say where a few weights decide: more samples would move the figure."""
        if self.ess >= ENOUGH_SAMPLES:
            return None
        return (
            f"{self.estimator}: of K = {self.num_samples} weights {self.ess:.1f} count on average; "
            "the figure would still move with a larger model.is_k"
        )


@torch.no_grad()
def posterior_collapse(
    model: LadderVAE,
    batches: EvaluationBatches,
    seed: int,
    passes: int,
    tick: Callable[[int], None],
) -> Collapse:
    """Bound, KL and active units over the images of all processes."""
    model.eval()
    statistics = CollapseStatistics(len(batches.images))
    for batch in batches:
        noise = (Noise.keyed(batch.ids, seed, POSTERIOR, index) for index in range(passes))
        statistics.update(batch.ids, (model(batch.x, noise=one) for one in noise))
        tick(len(batch.ids))
    return statistics.finish()


@torch.no_grad()
def likelihood(
    model: LadderVAE,
    batches: EvaluationBatches,
    estimator: str,
    num_samples: int,
    prior_samples: int,
    seed: int,
    tick: Callable[[int], None],
) -> tuple[Likelihood, Tensor]:
    """log p(x) with num_samples importance samples over the images of all processes.

    Returns the averages, and every image's −log p(x): (N,) nats, float64.
    """
    model.eval()
    places, found, rows = [], [], None
    for batch in batches:
        rows = rows or rows_that_fit(model, batch.x[:1])
        pieces = zip(batch.x.split(IMAGES_AT_ONCE), batch.ids.split(IMAGES_AT_ONCE), strict=True)
        for x, ids in pieces:
            noise = Noise.keyed(ids, seed, LIKELIHOOD)
            log_p, ess = model.estimate(x, num_samples, estimator, noise, prior_samples, rows)
            places.append(ids.cpu())
            found.append(torch.stack([-log_p.cpu().double(), ess.cpu().double()], 1))
            tick(len(ids))
    nll, ess = collectives.by_image(places, found, len(batches.images)).unbind(1)
    paths = prior_samples if estimator == "iwae" and model.has_diffusion else None
    averages = (*mean_and_error(nll), ess.mean().item())
    return Likelihood(estimator, num_samples, paths, *averages, len(nll)), nll


def rows_that_fit(model: LadderVAE, x: torch.Tensor) -> int:
    """Samples × images to decode at once, given one image: what memory allows, at most MAX_ROWS.

    A row holds the encoder's features and a few maps of the decoder's widest state.
    """
    features = {id(f): f.numel() for f in model.encode(x)}.values()
    per_row = x.element_size() * (sum(features) + MAPS_PER_ROW * max(features))
    budget = MEMORY_SHARE * _free_memory(model.device)
    return max(1, min(MAX_ROWS, int(budget / per_row)))


def _free_memory(device: torch.device) -> float:
    """Bytes of memory that can be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
