"""The ladder VAE: encoder, decoder and likelihood assembled; bounds and samplers.

    p(x, z, u) = p(u) Π_l p(z_l | z_{>l}, u) p(x | z, u)
    q(z, u | x) = q(u | x) Π_l q(z_l | z_{>l}, u, x)

Shapes: x (B, C, H, W) in [−1, 1]; latents (B, w, h, h), the context (B, C, d, d); D = C·H·W.
Method: Kuzina & Tomczak 2023, arXiv 2302.09976; ladder after Sønderby et al. 2016.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from model.arguments import check_draws, check_images, check_kept, check_temperature
from model.decoder import LadderDecoder
from model.encoder import LadderEncoder
from model.estimators import Estimator, ImportanceSamples, log_mean, named
from model.latents import LatentAccess
from model.layers import BlockStyle, CheckpointedModule
from model.likelihoods import LIKELIHOODS, Likelihood
from model.noise import Noise
from model.output import LadderOutput
from model.part import Part
from model.scales import layout


class LadderVAE(LatentAccess, Part):
    """The generative model p(x, z, u) and its posterior q(z, u | x).

    image_shape: (C, H, W). standardisation: (mean, deviation) of images, on 0 … 255, with which the
    encoder's input is standardised. levels: number of grey values, for likelihoods of integers.
    encoder, decoder: callables that build the two nets from what they share (the scales, the block
    style, channels); see model/encoder.py and model/decoder.py. The rest: docs/settings.md.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        encoder: Callable[..., LadderEncoder],
        decoder: Callable[..., LadderDecoder],
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

    @classmethod
    def check_arguments(
        cls,
        size: int,
        *,
        latent_scales: Sequence[int],
        latent_width: Sequence[int],
        num_ch: int,
        scale_ch_mult: float,
        block_ch_mult: float,
        start_scale_at_x: bool,
        decoder: Callable,
        ctx_size: int | None = None,
        **others: Any,
    ) -> None:
        """decoder: its class. What `layout` raises about the scales names config keys already."""
        scales = layout(size, latent_scales, latent_width, num_ch, scale_ch_mult, start_scale_at_x)
        if min(int(scale.channels * block_ch_mult) for scale in scales) < 1:
            raise ValueError(
                f"num_ch={num_ch} with scale_ch_mult={scale_ch_mult} and block_ch_mult="
                f"{block_ch_mult} leaves a block no channels: raise one."
            )
        has_context = getattr(decoder, "num_top", 0) > 0
        if has_context and ctx_size is None:
            raise ValueError(
                "ctx_size is missing, the context's side: use model=context_ladder, which has it."
            )
        if ctx_size is not None and not has_context:
            raise ValueError(f"ctx_size={ctx_size} needs model/decoder=context.")
        if ctx_size is not None and ctx_size > size:
            raise ValueError(
                f"ctx_size={ctx_size} is over the image's {size} pixels: use {size} or less."
            )

    def forward(
        self, x: Tensor, temperature: float = 1.0, noise: Noise | None = None
    ) -> LadderOutput:
        """One posterior pass; temperature 0 takes means, no dither and no binarisation noise.

        Raises:
            ValueError: if x is not (B, C, H, W) in [−1, 1]; its values are not looked at in
                training. If the temperature is negative.
        """
        return self.infer(x, [True] * self.num_latents, temperature, noise)

    def infer(
        self,
        x: Tensor,
        keep: Sequence[bool],
        temperature: float = 1.0,
        noise: Noise | None = None,
        prior_temperature: float | None = None,
    ) -> LadderOutput:
        """A pass in which latent l comes from its posterior where keep[l], else from its prior.

        Posteriors below a latent from its prior see that latent, and may make up for it. The
        reconstruction plus the KLs of what is kept bounds −log p(x) from above whatever is kept.
        prior_temperature: of draws from priors; None: as of the others. With 0, their means, it is
        no bound.
        """
        check_images(x, self.image_shape, look=not self.training)
        check_temperature(temperature)
        noise = noise or Noise.fresh(len(x), x.device)
        target = self.likelihood.target(x, noise, temperature)
        decoder = self.decoder
        tops = decoder.num_top
        if all(keep[:tops]):
            top = [latent.with_kl() for latent in decoder.infer_top(x, noise, temperature)]
        else:
            of_priors = temperature if prior_temperature is None else prior_temperature
            top = decoder.sample_top(len(x), noise, of_priors)
        kept = reversed(keep[tops:])  # features count from the bottom
        features = [f if k else None for f, k in zip(self.encode(x), kept, strict=True)]
        values = [latent.z for latent in top]
        latents, head = decoder.top_down(
            len(x), values, features, (), noise, temperature, prior_temperature
        )
        return LadderOutput(self.px(head), [*top, *latents], target)

    def recompute(self, on: bool) -> None:
        """Switch activation checkpointing of nets and residual blocks, which saves memory."""
        for module in self.modules():
            if isinstance(module, CheckpointedModule):
                module.recompute = on

    def to_device(
        self, device: torch.device | str, dtype: torch.dtype | None = None
    ) -> "LadderVAE":
        """Move to a device, in channels-last memory format; on a CPU each prior in its own."""
        self.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        if self.device.type == "cpu":
            for prior in self.decoder.priors:
                prior.to(memory_format=prior.cpu_memory_format)
        return self

    def fit_context(self, images: Tensor, max_value: int) -> None:
        """Fit the context, where there is one, to the training images (N, C, H, W) uint8."""
        self.decoder.fit(images, max_value)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The encoder's features of x, bottom up."""
        mean, std = self.standardisation
        return self.encoder(((x + 1.0) * 127.5 - mean) / std)

    def generate(
        self,
        n: int,
        temperature: float = 1.0,
        noise: Noise | None = None,
        given: Sequence[Tensor | None] = (),
    ) -> Likelihood:
        """p(x | latents) of n draws; latents may be given from the top, each (n, w, h, h)."""
        return self.generate_latents(n, temperature, noise, given)[1]

    def generate_latents(
        self,
        n: int,
        temperature: float = 1.0,
        noise: Noise | None = None,
        given: Sequence[Tensor | None] = (),
    ) -> tuple[list[Tensor], Likelihood]:
        """The latents' values (top to bottom) behind `generate`, and its p(x | latents).

        Raises:
            ValueError: if n is below 1, or the temperature negative.
        """
        check_temperature(temperature)
        if not given:  # what is given may be of no image, where a process has none
            check_draws(n, temperature)
        noise = noise or Noise.fresh(n, self.device)
        tops = self.decoder.num_top
        top = list(given[:tops])
        if len(top) < tops or any(z is None for z in top):
            top = [latent.z for latent in self.decoder.sample_top(n, noise, temperature)]
        latents, head = self.decoder.top_down(n, top, None, given[tops:], noise, temperature)
        return [*top, *(latent.z for latent in latents)], self.px(head)

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """Draws from p(x): (n, C, H, W) in [−1, 1].

        Raises:
            ValueError: if n is below 1, or the temperature negative.
        """
        check_draws(n, temperature)
        noise = noise or Noise.fresh(n, self.device)
        return self.generate(n, temperature, noise).sample(temperature, noise)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, keep: int, temperature: float = 1.0, noise: Noise | None = None
    ) -> Tensor:
        """E[x | latents]: the top `keep` latents from x's posterior, the rest from the prior.

        Raises:
            ValueError: if the model has fewer layers, or as `forward`.
        """
        check_kept(keep, self.num_latents)
        noise = noise or Noise.fresh(len(x), x.device)
        latents = self(x, temperature, noise).latents
        given = [latent.z for latent in latents[:keep]]
        return self.generate(len(x), temperature, noise, given).mean

    def log_likelihood(
        self,
        x: Tensor,
        num_samples: int,
        estimator: str | Estimator = "iwae",
        **options: Any,
    ) -> Tensor:
        """log p(x) in nats, (B,): the first part of `estimate`, which documents the options."""
        return self.estimate(x, num_samples, estimator, **options)[0]

    @torch.no_grad()
    def estimate(
        self,
        x: Tensor,
        num_samples: int,
        estimator: str | Estimator = "iwae",
        noise: Noise | None = None,
        **options: int,
    ) -> tuple[Tensor, Tensor]:
        """log p(x) in nats, (B,), and the effective number (Σw)²/Σw² of its `num_samples` weights.

        estimator: one of `model.estimators.ESTIMATORS` by name, or an Estimator. options: paths,
        per_context and max_rows of `ImportanceSamples`; the weights are never stored. A Bernoulli
        model estimates the probability of one binarisation of x, the same for all samples.

        Raises:
            ValueError: if num_samples is below 1, the estimator unknown, or x as `forward` refuses.
        """
        check_images(x, self.image_shape)
        if num_samples < 1:
            raise ValueError(f"num_samples={num_samples} gives no estimate: use 1 or more.")
        noise = noise or Noise.fresh(len(x), x.device)
        target = self.likelihood.target(x, noise)
        samples = ImportanceSamples(num_samples, noise, **options)
        return log_mean(named(estimator).log_weights(self, x, target, samples))

    @property
    def num_latents(self) -> int:
        """Layers, the context included."""
        return self.decoder.num_top + len(self.decoder.blocks)

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(w, h, h) of each layer, top to bottom."""
        return self.decoder.latent_shapes

    @property
    def has_context(self) -> bool:
        """Whether there is one, as layer 0."""
        return self.decoder.num_top > 0

    @property
    def layer_names(self) -> list[str]:
        """Their numbers from the top; the context's is marked."""
        top = ["0 (context)"] if self.has_context else ["0"]
        return top + [str(layer) for layer in range(1, self.num_latents)]

    def valid_latent(self, layer: int, z: Tensor) -> Tensor:
        """z, or of a quantised context the nearest levels."""
        return self.decoder.to_levels(z) if layer < self.decoder.num_top else z

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return next(self.parameters()).device

    @property
    def uses_paths(self) -> bool:
        """Whether a prior's density is estimated from sampled paths, as a diffusion's is."""
        return any(prior.uses_paths for prior in self.decoder.priors)

    def after_optimizer_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """Let priors update what they learn without gradients.

        total: sums a tensor over the processes that share the batch.
        """
        for prior in self.decoder.priors:
            prior.after_optimizer_step(total)

    def px(self, head: Tensor) -> Likelihood:
        """p(x | z, u) from the decoder's head (B, head channels, H, W)."""
        return self.likelihood.from_head(head, self.image_shape[0], self.levels)
