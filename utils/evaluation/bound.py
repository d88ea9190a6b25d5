"""Whole-split evaluation: the bound with its collapse report, and importance-sampled likelihoods.

Noise is a function of (seed, purpose, image, sample): no figure depends on the batch size, the
chunk size or the number of processes, beyond the order of floating-point sums.
"""

from collections.abc import Callable

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from model.estimators import MAX_ROWS, Estimator, named
from model.noise import Noise, NoisePurpose
from utils.evaluation.collapse import Collapse, CollapseStatistics, mean_and_error
from utils.processes import collectives

IMAGES_AT_ONCE = 32  # per call of the estimator, so that progress is shown between calls
ENOUGH_SAMPLES = 3.0  # effective sample size under which the estimate comes with a warning
MEMORY_SHARE = 0.1  # of the free memory, for the rows decoded at once
MAPS_PER_ROW = 8  # feature maps of the decoder's widest state, estimated


class NllEstimate(BaseModel, frozen=True, defer_build=True):
    """An estimate of −log p(x) in nats per image, with its standard error over images."""

    estimator: str
    num_samples: int
    prior_samples: int | None  # diffusion paths of each context, if the estimator draws any
    # Samples that share a context. None: it has none, or an earlier version shared one by all.
    per_context: int | None = Field(None, exclude_if=lambda value: value is None)
    nll: float
    nll_se: float
    ess: float  # effective sample size of the num_samples weights, mean over images
    images: int

    @property
    def protocol(self) -> str:
        """How the context u is sampled, in words; empty where there is none."""
        if self.prior_samples is None:
            return ""
        per = {None: "image", 1: "sample"}.get(self.per_context, f"{self.per_context} samples")
        return f"u per {per}, {self.prior_samples} path(s)"

    @property
    def warning(self) -> str | None:
        """A sentence for the user if few weights dominate; None if the sample size is enough."""
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
    posterior_samples: int,
    tick: Callable[[int], None],
) -> Collapse:
    """Bound, KL and active units over the images of all processes.

    tick: called with the number of images done, after each batch.
    """
    model.eval()
    statistics = CollapseStatistics(len(batches.images))
    for batch in batches:
        draws = (
            Noise.keyed(batch.ids, seed, NoisePurpose.POSTERIOR, index)
            for index in range(posterior_samples)
        )
        statistics.update(batch.ids, (model(batch.x, noise=noise) for noise in draws))
        tick(len(batch.ids))
    return statistics.finish()


@torch.no_grad()
def estimate_nll(
    model: LadderVAE,
    batches: EvaluationBatches,
    estimator: str | Estimator,
    num_samples: int,
    prior_samples: int,
    per_context: int,
    seed: int,
    tick: Callable[[int], None],
) -> tuple[NllEstimate, Tensor]:
    """−log p(x) with num_samples importance samples over the images of all processes.

    prior_samples, per_context: `paths` and `per_context` of `ImportanceSamples`.
    Returns the averages, and every image's −log p(x): (N,) nats, float64.
    """
    model.eval()
    # The first of each is of no image: a process may have none.
    all_ids, per_image = [torch.empty(0).long()], [torch.empty(0, 2).double()]
    rows = None
    for batch in (batch for batch in batches if len(batch.ids)):
        rows = rows or rows_that_fit(model, batch.x[:1])
        at_once = max(1, min(IMAGES_AT_ONCE, rows // per_context))
        for x, ids in zip(batch.x.split(at_once), batch.ids.split(at_once), strict=True):
            noise = Noise.keyed(ids, seed, NoisePurpose.LIKELIHOOD)
            options = {"paths": prior_samples, "per_context": per_context, "max_rows": rows}
            log_p, ess = model.estimate(x, num_samples, estimator, noise, **options)
            all_ids.append(ids.cpu())
            per_image.append(torch.stack([-log_p.cpu().double(), ess.cpu().double()], 1))
            tick(len(ids))
    nll, ess = collectives.by_image(all_ids, per_image, len(batches.images)).unbind(1)
    mean, error = mean_and_error(nll)
    samples_prior = named(estimator).uses_prior_paths
    estimate = NllEstimate(
        estimator=named(estimator).name,
        num_samples=num_samples,
        prior_samples=prior_samples if samples_prior and model.uses_paths else None,
        per_context=per_context if samples_prior and model.has_context else None,
        nll=mean,
        nll_se=error,
        ess=ess.mean().item(),
        images=len(nll),
    )
    return estimate, nll


def rows_that_fit(model: LadderVAE, x: Tensor) -> int:
    """Samples × images to decode at once, given one image: as memory allows, at most MAX_ROWS.

    A row holds the encoder's features and a few maps of the decoder's widest state.
    """
    features = {id(f): f.numel() for f in model.encode(x)}.values()
    per_row = x.element_size() * (sum(features) + MAPS_PER_ROW * max(features))
    budget = MEMORY_SHARE * _free_memory(model.device)
    return max(1, min(MAX_ROWS, int(budget / per_row)))


def _free_memory(device: torch.device) -> float:
    """Bytes that can be taken on the device, those included that PyTorch keeps for reuse."""
    import psutil  # not at every start

    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available
