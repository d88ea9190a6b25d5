"""Whole-split evaluation: the bound with its collapse report, and importance-sampled likelihoods.

Noise is a function of (seed, purpose, image, sample): no figure depends on the batch size, the
chunk size or the number of processes, beyond the order of floating-point sums.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from datasets.loaders import Batch
from model import LadderVAE
from model.noise import Noise
from utils import distributed
from utils.collapse import CollapseReport, CollapseStatistics

POSTERIOR, LIKELIHOOD = 101, 103  # purposes that key the noise apart
IMAGES_AT_ONCE = 32  # whose samples are drawn together: a thousand each take a while


@dataclass(frozen=True)
class Likelihood:
    """−log p(x) in nats per image, with its standard error over images."""

    estimator: str
    num_samples: int
    prior_samples: int | None  # diffusion paths, where the estimator draws any
    nll: float
    nll_se: float
    images: int


@torch.no_grad()
def posterior_report(
    model: LadderVAE, batches: Iterable[Batch], seed: int, passes: int, tick: Callable[[int], None]
) -> CollapseReport:
    """Bound, KL per layer and active units over the batches of all processes."""
    model.eval()
    statistics = CollapseStatistics()
    for batch in batches:
        noise = (Noise.keyed(batch.ids, seed, POSTERIOR, index) for index in range(passes))
        statistics.update([model(batch.x, noise=one) for one in noise])
        tick(len(batch.ids))
    return statistics.report()


@torch.no_grad()
def likelihood(
    model: LadderVAE,
    batches: Iterable[Batch],
    estimator: str,
    num_samples: int,
    prior_samples: int,
    seed: int,
    tick: Callable[[int], None],
) -> Likelihood:
    """log p(x) of every image with num_samples importance samples, averaged over all processes."""
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in batches:
        pieces = zip(batch.x.split(IMAGES_AT_ONCE), batch.ids.split(IMAGES_AT_ONCE), strict=True)
        for x, ids in pieces:
            noise = Noise.keyed(ids, seed, LIKELIHOOD)
            nll = -model.log_likelihood(x, num_samples, estimator, noise, prior_samples)
            nll = nll.cpu().double()
            sums += torch.stack([torch.ones_like(nll), nll, nll.square()]).sum(1)
            tick(len(ids))
    count, total, squares = distributed.total(sums).tolist()
    spread = max(squares / count - (total / count) ** 2, 0.0)
    paths = prior_samples if estimator == "iwae" and model.has_diffusion else None
    se = math.sqrt(spread / max(count - 1, 1))
    return Likelihood(estimator, num_samples, paths, total / count, se, int(count))
