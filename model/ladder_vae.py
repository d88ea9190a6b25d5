"""The ladder VAE: encoder, decoder and likelihood assembled; bounds and samplers.

    p(x, z, u) = p(u) Π_l p(z_l | z_{>l}, u) p(x | z, u)
    q(z, u | x) = q(u | x) Π_l q(z_l | z_{>l}, u, x)

Shapes: x (B, C, H, W) in [−1, 1]; latents (B, w, h, h), the context (B, C, d, d); D = C·H·W.
Method: Kuzina & Tomczak 2023, arXiv 2302.09976; ladder after Sønderby et al. 2016.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.decoder import Latent
from model.diffusion import DiffusionPrior
from model.distributions import Gaussian, sum_per_image
from model.layers import BlockStyle, Unit
from model.likelihoods import LIKELIHOODS, Likelihood
from model.noise import Noise
from model.scales import layout

ESTIMATORS = ("iwae", "published")
PRIOR_PATHS = 16  # diffusion paths per image behind `iwae`
MAX_ROWS = 512  # samples × images decoded at once


@dataclass(frozen=True)
class LadderOutput:
    """One pass of the posterior, per image."""

    px: Likelihood  # p(x | z, u)
    latents: list[Latent]  # top to bottom, the context first where there is one
    target: Tensor  # (B, C, H, W), what px is asked about: x, or a binarisation of it

    @property
    def kl(self) -> Tensor:
        """(B, number of latents) nats, context first; 0 where a latent was its prior's."""
        none = self.target.new_zeros(len(self.target))
        return torch.stack(
            [none if each.kl is None else sum_per_image(each.kl) for each in self.latents], dim=1
        )

    @property
    def reconstruction(self) -> Tensor:
        """−log p(target | latents): (B,) nats."""
        return -self.px.log_prob(self.target)


class LadderVAE(nn.Module):
    """image_shape: (C, H, W). standardisation: (m, s) of the encoder's input, on 0 … 255.

    levels: of the grey values, for the likelihoods that count them.

    encoder, decoder: callables that finish the two nets, given what they share (the scales, the
    block style, channels); see model/encoder.py and model/decoder.py. The rest: README, "Settings".
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        encoder: Callable[..., nn.Module],
        decoder: Callable[..., nn.Module],
        latent_scales: Sequence[int],
        latent_width: Sequence[int],
        num_ch: int,
        scale_ch_mult: float,
        block_ch_mult: float,
        activation: str,
        weight_norm: bool,
        batch_norm: bool,
        start_scale_at_x: bool,
        likelihood: str,
        num_mix: int = 1,
        ctx_size: int | None = None,
        standardisation: tuple[float, float] = (127.5, 127.5),
        levels: int = 256,
    ):
        super().__init__()
        channels, size, _ = image_shape
        self.image_shape, self.standardisation = tuple(image_shape), tuple(standardisation)
        self.levels = levels
        self.likelihood = LIKELIHOODS[likelihood]
        scales = layout(size, latent_scales, latent_width, num_ch, scale_ch_mult, start_scale_at_x)
        style = BlockStyle(block_ch_mult, activation, weight_norm, batch_norm)
        self.encoder = encoder(in_channels=channels, num_ch=num_ch, scales=scales, style=style)
        context = {} if ctx_size is None else {"ctx_size": ctx_size}
        head_channels = self.likelihood.head_channels(channels, num_mix)
        self.decoder = decoder(
            image_shape=self.image_shape,
            head_channels=head_channels,
            scales=scales,
            style=style,
            **context,
        )

    def forward(
        self, x: Tensor, temperature: float = 1.0, noise: Noise | None = None
    ) -> LadderOutput:
        """One posterior pass; temperature 0 takes means, no dither and no binarisation noise."""
        return self.infer(x, [True] * self.num_latents, temperature, noise)

    def infer(
        self,
        x: Tensor,
        keep: Sequence[bool],
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> LadderOutput:
        """A pass in which latent l comes from its posterior where keep[l], else from its prior.

        Posteriors below a latent from its prior see that latent, and may make up for it. The
        reconstruction plus the KLs of what is kept bounds −log p(x) from above whatever is kept.
        """
        noise = noise or Noise.fresh(len(x), x.device)
        target = self.likelihood.target(x, noise, temperature)
        decoder = self.decoder
        tops = decoder.num_top
        if all(keep[:tops]):
            top = decoder.infer_top(x, noise, temperature)
        else:
            top = decoder.sample_top(len(x), noise, temperature)
        kept = reversed(keep[tops:])  # features count from the bottom
        features = [f if k else None for f, k in zip(self.encode(x), kept, strict=True)]
        values = [latent.z for latent in top]
        latents, head = decoder.descend(len(x), values, features, (), noise, temperature)
        return LadderOutput(self._px(head), [*top, *latents], target)

    def recompute(self, on: bool) -> None:
        """Whether training keeps of nets and residual blocks their inputs alone, to save memory."""
        for module in self.modules():
            if isinstance(module, Unit):
                module.recompute = on

    def place(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "LadderVAE":
        """Move it to a device, its convolutions channels last.

        But on a CPU the diffusion's, whose few positions take a fifth less time channel by channel.
        """
        self.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        if self.device.type == "cpu":
            for module in self.modules():
                if isinstance(module, DiffusionPrior):
                    module.to(memory_format=torch.contiguous_format)
        return self

    def fit_context(self, images: Tensor, max_value: int) -> None:
        """Fit what the context takes from the training images (N, C, H, W) uint8."""
        if self.decoder.num_top:
            self.decoder.context.fit_scale(images, max_value)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's features of x, bottom up."""
        mean, std = self.standardisation
        return self.encoder(((x + 1.0) * 127.5 - mean) / std)

    def generate(
        self,
        n: int,
        temperature: float = 1.0,
        noise: Noise | None = None,
        given: Sequence[Tensor] = (),
    ) -> Likelihood:
        """p(x | latents) of n draws; the first latents may be given, each (n, w, h, h)."""
        return self.generate_latents(n, temperature, noise, given)[1]

    def generate_latents(
        self,
        n: int,
        temperature: float = 1.0,
        noise: Noise | None = None,
        given: Sequence[Tensor] = (),
    ) -> tuple[list[Tensor], Likelihood]:
        """The latents' values (top to bottom) behind `generate`, and its p(x | latents)."""
        noise = noise or Noise.fresh(n, self.device)
        tops = self.decoder.num_top
        top = list(given[:tops])
        if len(top) < tops:
            top = [latent.z for latent in self.decoder.sample_top(n, noise, temperature)]
        latents, head = self.decoder.descend(n, top, None, given[tops:], noise, temperature)
        return [*top, *(latent.z for latent in latents)], self._px(head)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """Draws from p(x): (n, C, H, W) in [−1, 1]."""
        noise = noise or Noise.fresh(n, self.device)
        return self.generate(n, temperature, noise).sample(temperature, noise)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, keep: int, temperature: float = 1.0, noise: Noise | None = None
    ) -> Tensor:
        """E[x | latents]: the top `keep` latents from x's posterior, the rest from the prior."""
        noise = noise or Noise.fresh(len(x), x.device)
        latents = self(x, temperature, noise).latents
        given = [latent.z for latent in latents[:keep]]
        return self.generate(len(x), temperature, noise, given).mean

    def log_likelihood(
        self,
        x: Tensor,
        num_samples: int,
        estimator: str = "iwae",
        **options,
    ) -> Tensor:
        """log p(x) in nats, (B,): the first part of `estimate`, which says what the options are."""
        return self.estimate(x, num_samples, estimator, **options)[0]

    @torch.no_grad()
    def estimate(
        self,
        x: Tensor,
        num_samples: int,
        estimator: str = "iwae",
        noise: Noise | None = None,
        prior_samples: int = PRIOR_PATHS,
        max_rows: int = MAX_ROWS,
    ) -> tuple[Tensor, Tensor]:
        """log p(x) in nats, (B,), and the effective number (Σw)²/Σw² of its `num_samples` weights.

        `iwae` (Burda et al. 2016) is a lower bound in expectation: weights are ratios of densities
        at the samples, p(u)'s from `prior_samples` diffusion paths. `published` is what the code of
        arXiv 2302.09976 computes, the log-mean-exp of ELBOs; it is not a bound.
        A Bernoulli model is asked about one binarisation of x, the same for all samples.
        Weights are made `max_rows` at a time and never stored.
        """
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} gives no estimate: use 1 or more.")
        if estimator not in ESTIMATORS:
            raise ValueError(f"estimator={estimator!r} is unknown: use one of {ESTIMATORS}.")
        noise = noise or Noise.fresh(len(x), x.device)
        target = self.likelihood.target(x, noise)
        weigh = self._iwae_weights if estimator == "iwae" else self._published_weights
        total = squares = x.new_full((len(x),), -math.inf)
        for log_weights in weigh(x, target, num_samples, noise, prior_samples, max_rows):
            total = torch.logaddexp(total, log_weights.logsumexp(0))
            squares = torch.logaddexp(squares, (2.0 * log_weights).logsumexp(0))
        return total - math.log(num_samples), (2.0 * total - squares).exp()

    def _iwae_weights(
        self, x: Tensor, target: Tensor, num_samples: int, noise: Noise, paths: int, rows: int
    ) -> Iterator[Tensor]:
        """log p(x, z, u)/q(z, u | x) at the samples, (k, B) at a time.

        Features, the context and its weight don't depend on z: computed once per image.
        """
        features = self.encode(x)
        top = self.decoder.infer_top(x, noise, 1.0)
        log_top = sum((_log_weight(latent, noise, paths) for latent in top), x.new_zeros(len(x)))
        for draws, count in _sample_chunks(noise, num_samples, len(x), rows):
            latents, head = self.decoder.descend(
                count * len(x),
                [latent.z.repeat(count, 1, 1, 1) for latent in top],
                repeat_rows(features, count),
                (),
                draws,
            )
            log_w = self._px(head).log_prob(target.repeat(count, 1, 1, 1))
            for latent in latents:
                log_w = log_w + _log_weight(latent, draws, 1)
            yield log_w.view(count, len(x)) + log_top

    def _published_weights(
        self, x: Tensor, target: Tensor, num_samples: int, noise: Noise, paths: int, rows: int
    ) -> Iterator[Tensor]:
        """ELBO_k = log p(x | z, u) − analytic KLs + the published log p(u), (k, B) at a time.

        The context and its term are drawn anew for every sample, because their noise is inside the
        published average; the encoder's features are not.
        """
        features = self.encode(x)
        for draws, count in _sample_chunks(noise, num_samples, len(x), rows):
            repeated = x.repeat(count, 1, 1, 1)
            top = self.decoder.infer_top(repeated, draws, 1.0, published=True)
            latents, head = self.decoder.descend(
                len(repeated), [latent.z for latent in top], repeat_rows(features, count), (), draws
            )
            elbo = self._px(head).log_prob(target.repeat(count, 1, 1, 1))
            for latent in [*top, *latents]:
                elbo = elbo - sum_per_image(latent.kl)
            yield elbo.view(count, len(x))

    @property
    def num_latents(self) -> int:
        """Layers, the context included."""
        return self.decoder.num_top + len(self.decoder.blocks)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def has_diffusion(self) -> bool:
        """Whether a latent's prior is a diffusion model."""
        return any(isinstance(module, DiffusionPrior) for module in self.modules())

    def settle(self, total: Callable[[Tensor], Tensor]) -> None:
        """After an optimiser step; total: the sum over the processes that share the batch."""
        for module in self.modules():
            if isinstance(module, DiffusionPrior):
                module.settle(total)

    def _px(self, head: Tensor) -> Likelihood:
        return self.likelihood.from_head(head, self.image_shape[0], self.levels)


def _log_weight(latent: Latent, noise: Noise, paths: int) -> Tensor:
    """log p(z) − log q(z) at the sample, summed over elements: (B,)."""
    log_q = sum_per_image(latent.q.log_prob(latent.z))
    if isinstance(latent.p, Gaussian):
        return sum_per_image(latent.p.log_prob(latent.z)) - log_q
    return latent.p.importance_weight(latent.z, noise, paths) - log_q


def _sample_chunks(
    noise: Noise, num_samples: int, batch: int, max_rows: int
) -> Iterator[tuple[Noise, int]]:
    """Streams for all samples, at most `max_rows` rows (but one sample per image) at a time."""
    chunk = max(1, max_rows // batch)
    for first in range(0, num_samples, chunk):
        count = min(chunk, num_samples - first)
        yield noise.samples(first, count), count


def repeat_rows(features: Sequence[Tensor], count: int) -> list[Tensor]:
    """Each feature `count` times over the batch, sample-major; shared features stay shared."""
    repeated = {id(f): f.repeat(count, 1, 1, 1) for f in features}
    return [repeated[id(f)] for f in features]
