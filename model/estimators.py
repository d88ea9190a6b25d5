"""Estimators of log p(x) by sampling the posterior; K: number of samples, B: images.

An estimator yields K log-weights per image; their log-mean-exp is the estimate. `iwae` is a bound
on log p(x); `published` is what the code of arXiv 2302.09976 computes, which is not.
Rows are sample-major: (k · B, …) holds the first sample of every image, then the second, ….
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.decoder import Latent
from model.distributions import sum_per_image
from model.noise import Noise, NoisePurpose

if TYPE_CHECKING:
    from model.ladder_vae import LadderVAE

PRIOR_PATHS = 2  # diffusion paths behind the weight of each draw from such a prior
PER_CONTEXT = 4  # samples that share a draw of the context
MAX_ROWS = 512  # samples × images decoded at once


@dataclass(frozen=True)
class ImportanceSamples:
    """How many samples of each image an estimator takes, and from which random numbers.

    noise: streams of the images, (B,). paths: diffusion paths behind each weight of such a prior.
    per_context: samples that share one context. max_rows: samples × images decoded at once (though
    never less than one sample of every image).
    """

    count: int
    noise: Noise
    paths: int = PRIOR_PATHS
    per_context: int = PER_CONTEXT
    max_rows: int = MAX_ROWS

    def chunks(self, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """(first, count) of consecutive samples to decode at once; a multiple where it fits."""
        most = max(1, self.max_rows // len(self.noise.keys))
        most -= most % multiple if most > multiple else 0
        for first in range(0, self.count, most):
            yield first, min(most, self.count - first)


class Estimator(ABC):
    """A way to weigh posterior samples; an outside one needs these attributes and the method."""

    name: str
    is_bound: bool  # whether the expected estimate is at most log p(x)
    description: str  # one line, which follows the name in tables and pages
    uses_prior_paths: bool  # whether it samples a diffusion prior's paths, and shares contexts

    @abstractmethod
    def log_weights(
        self, model: "LadderVAE", x: Tensor, target: Tensor, samples: ImportanceSamples
    ) -> Iterator[Tensor]:
        """The log-weights of `samples.count` samples per image, (k, B) nats at a time.

        x (B, C, H, W): the encoder's input. target: the image whose log-probability is wanted, x or
        its binarisation.
        """


class ImportanceWeighted(Estimator):
    """p(x, z, u)/q(z, u | x) at the samples (Burda et al. 2016).

    u is drawn anew for every few samples: with one u per image, more samples would converge to
    log p(x, u)/q(u | x) at that u instead of log p(x). Sharing it keeps every weight's expectation.

    The context's own weight costs as much as one or two samples of z given u. In equal time, on a
    trained MNIST model, two paths and four samples for each context give the tightest bound: 0.9
    nats below one path and one sample. Antithetic paths or a stratified dither change nothing.
    """

    name = "iwae"
    is_bound = True
    description = "importance-weighted with K samples; in expectation an upper bound on −log p(x)"
    uses_prior_paths = True

    def log_weights(
        self, model: "LadderVAE", x: Tensor, target: Tensor, samples: ImportanceSamples
    ) -> Iterator[Tensor]:
        """Ratios of densities; that of a diffusion prior is estimated from `samples.paths`."""
        features = model.encode(x)
        for first, count in samples.chunks(multiple=samples.per_context):
            draws = samples.noise.samples(first, count)
            contexts, log_top = _contexts(model, x, samples, first, count)
            log_w, latents = _decode(model, contexts, features, target, draws)
            for latent in latents:
                log_w = log_w + log_weight(latent, draws, samples.paths)
            yield (log_w + log_top).view(count, len(x))


class Published(Estimator):
    """ELBO_k = log p(x | z, u) − KLs, the context's as published; averaged in exp.

    The context and its term are drawn anew for every sample, because their noise is inside the
    published average; the encoder's features are shared.
    """

    name = "published"
    is_bound = False
    description = "as the published code computes it, for its tables; not a bound"
    uses_prior_paths = False

    def log_weights(
        self, model: "LadderVAE", x: Tensor, target: Tensor, samples: ImportanceSamples
    ) -> Iterator[Tensor]:
        """One ELBO per sample; its log p(u) is the diffusion's bound, without paths."""
        features = model.encode(x)
        for first, count in samples.chunks():
            draws, repeated = samples.noise.samples(first, count), x.repeat(count, 1, 1, 1)
            top = [with_published_kl(u) for u in model.decoder.infer_top(repeated, draws, 1.0)]
            elbo, latents = _decode(model, [latent.z for latent in top], features, target, draws)
            for latent in [*top, *latents]:
                elbo = elbo - sum_per_image(latent.kl)
            yield elbo.view(count, len(x))


ESTIMATORS: dict[str, Estimator] = {each.name: each for each in (ImportanceWeighted(), Published())}


def named(estimator: str | Estimator) -> Estimator:
    """The estimator of that name; an estimator itself is returned as it is.

    Raises:
        ValueError: if no estimator has the name.
    """
    if not isinstance(estimator, str):
        return estimator
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} is unknown: use one of {tuple(ESTIMATORS)}.")
    return ESTIMATORS[estimator]


def log_mean(chunks: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """The log of the weights' mean and their effective number (Σw)²/Σw², both (B,).

    chunks: log-weights, (k, B) at a time, of which none are kept.
    """
    first = next(chunks)
    total, squares, count = first.logsumexp(0), (2.0 * first).logsumexp(0), len(first)
    for log_w in chunks:
        total = torch.logaddexp(total, log_w.logsumexp(0))
        squares = torch.logaddexp(squares, (2.0 * log_w).logsumexp(0))
        count += len(log_w)
    return total - math.log(count), (2.0 * total - squares).exp()


def log_weight(latent: Latent, noise: Noise, paths: int) -> Tensor:
    """log p(z) − log q(z) at the sample, summed over elements that are not constant: (B,)."""
    log_q = latent.q.log_prob(latent.z) * latent.p.active_mask(latent.z)
    return latent.p.log_weight(latent.z, noise, paths) - sum_per_image(log_q)


def with_published_kl(latent: Latent) -> Latent:
    """A top latent with the published form of its KL."""
    return replace(latent, kl=latent.p.published_kl_from(latent.q, latent.z))


def _contexts(
    model: "LadderVAE", x: Tensor, samples: ImportanceSamples, first: int, count: int
) -> tuple[list[Tensor], Tensor]:
    """The context of each sample of a chunk, (count · B, …), and its log-weight, (count · B,) nats.

    A plain ladder has none, and a weight of one.
    """
    shared = samples.per_context
    used = range(first // shared, (first + count - 1) // shared + 1)
    streams = samples.noise.salted(NoisePurpose.CONTEXTS).samples(used.start, len(used))
    top = model.decoder.infer_top(x.repeat(len(used), 1, 1, 1), streams, 1.0)
    index = torch.arange(first, first + count, device=x.device) // shared - used.start

    def of_samples(values: Tensor) -> Tensor:
        """(contexts · B, …) -> (count · B, …)."""
        return values.unflatten(0, (len(used), len(x)))[index].flatten(0, 1)

    log_w = x.new_zeros(len(used) * len(x))
    for latent in top:
        log_w = log_w + log_weight(latent, streams, samples.paths)
    return [of_samples(latent.z) for latent in top], of_samples(log_w)


def _decode(
    model: "LadderVAE", top: list[Tensor], features: list[Tensor], target: Tensor, draws: Noise
) -> tuple[Tensor, list[Latent]]:
    """log p(target | z, u) of a chunk of samples, (k · B,) nats, and the ladder's latents.

    top: the context of each sample, where there is one; features (B, …) of each image.
    """
    count = len(draws.keys) // len(target)
    rows = repeat_rows(features, count)
    latents, head = model.decoder.top_down(count * len(target), top, rows, (), draws)
    return model.px(head).log_density(target.repeat(count, 1, 1, 1)), latents


def repeat_rows(features: Sequence[Tensor], count: int) -> list[Tensor]:
    """Each feature `count` times over the batch, sample-major; shared features stay shared."""
    repeated = {id(f): f.repeat(count, 1, 1, 1) for f in features}
    return [repeated[id(f)] for f in features]
