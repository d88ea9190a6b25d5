"""Estimators of log p(x) by sampling the posterior; K: number of samples, B: images.

An estimator yields K log-weights per image; their log-mean-exp is the estimate. `iwae` is a bound
on log p(x); `published` is what the code of arXiv 2302.09976 computes, which is not.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.decoder import Latent
from model.distributions import sum_per_image
from model.noise import Noise

if TYPE_CHECKING:
    from model.ladder_vae import LadderVAE

PRIOR_PATHS = 16  # diffusion paths per image behind the weight of `iwae`
MAX_ROWS = 512  # samples × images decoded at once


class Estimator(ABC):
    """A way to weigh posterior samples; an outside one needs these attributes and the method."""

    name: str
    is_bound: bool  # whether the expected estimate is at most log p(x)
    description: str  # one line, which follows the name in tables and pages
    uses_prior_paths: bool  # whether it samples paths of a diffusion prior, `paths` per image

    @abstractmethod
    def log_weights(
        self,
        model: "LadderVAE",
        x: Tensor,
        target: Tensor,
        num_samples: int,
        noise: Noise,
        paths: int,
        max_rows: int,
    ) -> Iterator[Tensor]:
        """The log-weights of `num_samples` samples per image, (k, B) nats at a time.

        x (B, C, H, W): the encoder's input. target: the image whose log-probability is wanted, x or
        its binarisation. At most `max_rows` samples × images are decoded at once (though never less
        than one sample of every image).
        """


class ImportanceWeighted(Estimator):
    """log p(x, z, u)/q(z, u | x) at the samples (Burda et al. 2016).

    Features, the context and its weight don't depend on z: computed once per image.
    """

    name = "iwae"
    is_bound = True
    description = "importance-weighted with K samples; in expectation an upper bound on −log p(x)"
    uses_prior_paths = True

    def log_weights(
        self,
        model: "LadderVAE",
        x: Tensor,
        target: Tensor,
        num_samples: int,
        noise: Noise,
        paths: int,
        max_rows: int,
    ) -> Iterator[Tensor]:
        """Ratios of densities; that of a diffusion prior is estimated from `paths` paths."""
        features = model.encode(x)
        top = model.decoder.infer_top(x, noise, 1.0)
        log_top = sum((log_weight(latent, noise, paths) for latent in top), x.new_zeros(len(x)))
        for draws, count in sample_chunks(noise, num_samples, len(x), max_rows):
            latents, head = model.decoder.top_down(
                count * len(x),
                [latent.z.repeat(count, 1, 1, 1) for latent in top],
                repeat_rows(features, count),
                (),
                draws,
            )
            log_w = model.px(head).log_prob(target.repeat(count, 1, 1, 1))
            for latent in latents:
                log_w = log_w + log_weight(latent, draws, 1)
            yield log_w.view(count, len(x)) + log_top


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
        self,
        model: "LadderVAE",
        x: Tensor,
        target: Tensor,
        num_samples: int,
        noise: Noise,
        paths: int,
        max_rows: int,
    ) -> Iterator[Tensor]:
        """One ELBO per sample; `paths` is not used, since log p(u) is its bound's."""
        features = model.encode(x)
        for draws, count in sample_chunks(noise, num_samples, len(x), max_rows):
            repeated = x.repeat(count, 1, 1, 1)
            top = [with_published_kl(u) for u in model.decoder.infer_top(repeated, draws, 1.0)]
            latents, head = model.decoder.top_down(
                len(repeated), [latent.z for latent in top], repeat_rows(features, count), (), draws
            )
            elbo = model.px(head).log_prob(target.repeat(count, 1, 1, 1))
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
    """log p(z) − log q(z) at the sample, summed over elements: (B,)."""
    log_q = sum_per_image(latent.q.log_prob(latent.z))
    return latent.p.log_weight(latent.z, noise, paths) - log_q


def with_published_kl(latent: Latent) -> Latent:
    """A top latent with the published form of its KL."""
    return replace(latent, kl=latent.p.published_kl_from(latent.q, latent.z))


def sample_chunks(
    noise: Noise, num_samples: int, batch: int, max_rows: int
) -> Iterator[tuple[Noise, int]]:
    """(noise, count) of consecutive chunks of samples, of at most `max_rows` rows if possible."""
    chunk = max(1, max_rows // batch)
    for first in range(0, num_samples, chunk):
        count = min(chunk, num_samples - first)
        yield noise.samples(first, count), count


def repeat_rows(features: Sequence[Tensor], count: int) -> list[Tensor]:
    """Each feature `count` times over the batch, sample-major; shared features stay shared."""
    repeated = {id(f): f.repeat(count, 1, 1, 1) for f in features}
    return [repeated[id(f)] for f in features]
