"""Top-down: the context and the encoder's features -> z_L … z_1 -> the likelihood's parameters.

    s (B, c, h, h)  the deterministic state, from a zero map at the coarsest scale to the image
    s ← s + f;  s ← block(s + 1×1(z));  upsample after a scale's last latent
    head(s), or what `output` puts in the place of s

Sections 2 and 3 of arXiv 2302.09976. Latents are listed from the top, the context first.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.context import CONTEXTS, Context, ContextPosterior
from model.direct import DirectPath
from model.latent import Latent, LatentBlock
from model.layers import BlockStyle, at_least_float32, decoder_block, last_conv, zero_init
from model.levels import quantise
from model.noise import Noise
from model.part import Part
from model.priors import LatentSite, LogVariance, NetworkPrior, Prior
from model.scales import Scale


class LadderDecoder(Part):
    """The plain ladder: the top latent is a block like any other, its prior is `z_L_prior`.

    posterior, delta: see `LatentBlock`. output: what the likelihood's head reads: the last `state`,
    the state and every latent (`skip`), or every latent alone (`aggregate`); see `DirectPath`, also
    for tied.
    """

    num_top = 0  # latents above those of the ladder

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        head_channels: int,
        scales: list[Scale],
        style: BlockStyle,
        z_L_prior: Callable[[LatentSite], Prior],
        num_blocks_per_scale: int,
        num_postprocess_blocks: int,
        var_mode: str,
        softplus_beta: float,
        disconnect: bool,
        condition_on_last: bool,
        posterior: str = "absolute",
        delta: float | None = None,
        output: str = "state",
        tied: bool = False,
    ):
        super().__init__()
        self.style, self.log_variance = style, LogVariance(var_mode, softplus_beta)
        coarsest, finest = scales[-1], scales[0]
        self.start_shape = (coarsest.channels, coarsest.size, coarsest.size)
        widths = [scale.width for scale in reversed(scales) for _ in range(scale.num_latents)]
        num_latents = len(widths)
        self.blocks, self.upsampling, self.scale_index = nn.ModuleList(), [], []
        for index, scale in reversed(list(enumerate(scales))):
            for position in range(scale.num_latents):
                last = position == scale.num_latents - 1
                next_channels = scales[index - 1].channels if last and index else scale.channels
                make_prior = NetworkPrior if self.blocks else self.first_prior(z_L_prior)
                self.blocks.append(
                    LatentBlock(
                        scale,
                        next_channels,
                        style,
                        make_prior(self._site(scale)),
                        self.log_variance,
                        num_blocks_per_scale,
                        disconnect,
                        num_latents,
                        posterior,
                        delta,
                        updates_state=output != "aggregate" or len(self.blocks) < num_latents - 1,
                    )
                )
                self.upsampling.append(scale.factor if last else 1)
                self.scale_index.append(index if last else None)
        self.condition = nn.ModuleList()
        if condition_on_last:
            for scale in reversed(scales[:-1]):
                self.condition.append(self.condition_conv(image_shape[0], coarsest, scale.channels))
        channels, self.output = finest.channels, output
        if tied and len(set(widths)) > 1:
            raise ValueError(
                f"model.decoder.tied=true needs latents of one width, not {sorted(set(widths))}: "
                "make those of model.latent_width equal, or use tied=false."
            )
        if output != "state":
            self.direct = DirectPath(widths, channels, image_shape[-1], tied)
        post = [decoder_block(channels, channels, style) for _ in range(num_postprocess_blocks)]
        if post:
            zero_init(last_conv(post[-1].net))
        head = nn.Conv2d(channels, head_channels, 3, padding=1)
        nn.init.zeros_(head.bias)
        self.head = nn.Sequential(*post, head)

    @classmethod
    def check_arguments(
        cls,
        size: int,
        *,
        z_L_prior: Callable = NetworkPrior,
        posterior: str = "absolute",
        delta: float | None = None,
        output: str = "state",
        tied: bool = False,
        **others: Any,
    ) -> None:
        """z_L_prior: the prior's class."""
        top_is_gaussian = getattr(cls.first_prior(z_L_prior), "gaussian", False)
        if posterior == "committed" and not top_is_gaussian:
            raise ValueError(
                "posterior=committed needs Gaussian priors, which z_L_prior is not: use "
                "model/decoder/z_L_prior=network, or posterior=residual."
            )
        if posterior == "committed" and delta is None:
            raise ValueError("delta is missing, the nats that posterior=committed commits to.")
        if posterior != "committed" and delta is not None:
            raise ValueError(f"delta={delta} needs posterior=committed, which alone reads it.")
        if tied and output == "state":
            raise ValueError("tied=true needs output=skip or output=aggregate.")

    @property
    def priors(self) -> list[Prior]:
        """The priors of all latents, top to bottom."""
        return [block.prior for block in self.blocks]

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(w, h, h) of all latents, top to bottom."""
        return [block.shape for block in self.blocks]

    def fit(self, images: Tensor, max_value: int) -> None:
        """Set what depends on the training images (N, C, H, W) uint8: nothing here."""

    @staticmethod
    def first_prior(z_L_prior: Callable) -> Callable:
        """The prior of the first block: the top latent's own."""
        return z_L_prior

    @staticmethod
    def condition_conv(image_channels: int, coarsest: Scale, channels: int) -> nn.Module:
        """From the upsampled top latent to a scale's state."""
        return nn.Conv2d(coarsest.width, channels, 1)

    def _site(self, scale: Scale) -> LatentSite:
        return LatentSite(
            scale.width, scale.size, None, scale.channels, self.style, self.log_variance
        )

    def infer_top(self, x: Tensor, noise: Noise, temperature: float) -> list[Latent]:
        """Posterior draws of the `num_top` latents above the ladder's, without KL: none here."""
        return []

    def sample_top(self, n: int, noise: Noise, temperature: float) -> list[Latent]:
        """Prior draws of these latents: none here."""
        return []

    def start(self, n: int, top: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The state at the coarsest scale; and what conditions later scales, if known already."""
        weight = next(self.parameters())
        return torch.zeros(n, *self.start_shape, dtype=weight.dtype, device=weight.device), None

    def resize_condition(self, condition: Tensor, size: int) -> Tensor:
        """The top latent at a scale's resolution."""
        return F.interpolate(condition, size=(size, size), mode="nearest")

    def top_down(
        self,
        n: int,
        top: Sequence[Tensor],
        features: Sequence[Tensor | None] | None,
        given: Sequence[Tensor],
        noise: Noise,
        temperature: float = 1.0,
        prior_temperature: float | None = None,
    ) -> tuple[list[Latent], Tensor]:
        """The ladder's latents (top to bottom) and the head's output, given the values above them.

        features: the encoder's, bottom up; a latent without one is drawn from its prior.
        given: values of the first latents of the ladder, used as they are.
        prior_temperature: of draws from priors; None: as of the others.
        """
        of_priors = temperature if prior_temperature is None else prior_temperature
        s, condition = self.start(n, top)
        latents, conditioned = [], iter(self.condition)
        for index, block in enumerate(self.blocks):
            feature = features[-1 - index] if features is not None else None
            value = given[index] if index < len(given) else None
            latent, s = block(s, feature, value, noise, temperature, of_priors)
            latents.append(latent)
            condition = latent.z if condition is None else condition
            if self.upsampling[index] > 1:
                s = F.interpolate(s, scale_factor=self.upsampling[index], mode="nearest")
            if self.scale_index[index]:  # between two scales, not after the finest
                conv = next(conditioned, None)
                if conv is not None:
                    s = s + conv(self.resize_condition(condition, s.shape[-1]))
        return latents, at_least_float32(self.head(self._read(s, latents)))

    def _read(self, s: Tensor, latents: list[Latent]) -> Tensor:
        """What the head reads, (B, c, H, W), given the last state."""
        if self.output == "state":
            return s
        direct = self.direct([latent.z for latent in latents])
        return s + direct if self.output == "skip" else direct


class ContextDecoder(LadderDecoder):
    """The ladder under a context: a quantised DCT of x (or x downsampled), diffusion prior.

    context: makes a context from (channels, image_size, ctx_size), in place of the one of
    `CONTEXTS` that ctx_type names. z_L_prior: makes the context's prior, which must be bounded.
    """

    num_top = 1

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        head_channels: int,
        scales: list[Scale],
        style: BlockStyle,
        z_L_prior: Callable[[LatentSite], Prior],
        ctx_size: int,
        ctx_type: str | None,
        ctx_posterior_var: str,
        ctx_posterior_var_init: float,
        z_L_bits: int,
        context: Callable[[int, int, int], Context] | None = None,
        **ladder,
    ):
        super().__init__(image_shape, head_channels, scales, style, z_L_prior, **ladder)
        channels, size, _ = image_shape
        coarsest = scales[-1]
        self.bits = z_L_bits
        self.context = (context or CONTEXTS[ctx_type])(channels, size, ctx_size)
        self.context_posterior = ContextPosterior(
            ctx_posterior_var, ctx_posterior_var_init, channels, ctx_size, z_L_bits
        )
        bits = None if self.context_posterior.continuous else z_L_bits
        site = LatentSite(channels, ctx_size, bits, coarsest.channels, style, self.log_variance)
        self.context_prior = z_L_prior(site)
        self.check_arguments(size, z_L_prior=type(self.context_prior))
        self.context_conv = nn.Conv2d(channels, coarsest.channels, 3, padding=1)

    @classmethod
    def check_arguments(cls, size: int, *, z_L_prior: Callable, **others: Any) -> None:
        """z_L_prior: the prior's class; what a function makes is checked once it is built."""
        super().check_arguments(size, z_L_prior=z_L_prior, **others)
        if not getattr(z_L_prior, "bounded", True):
            raise ValueError(
                "z_L_prior of a context must be a diffusion model: use "
                "model/decoder/z_L_prior=ddgm."
            )

    @property
    def priors(self) -> list[Prior]:
        """The priors of all latents, the context's first."""
        return [self.context_prior, *super().priors]

    @property
    def latent_shapes(self) -> list[tuple[int, int, int]]:
        """(C, d, d) of the context, then those of the ladder."""
        return [tuple(self.context.active.shape), *super().latent_shapes]

    def fit(self, images: Tensor, max_value: int) -> None:
        """Fit the context to the training images (N, C, H, W) uint8."""
        self.context.fit(images, max_value)

    @staticmethod
    def first_prior(z_L_prior: Callable) -> Callable:
        """The prior of the first block is a net like any other's; `z_L_prior` is the context's."""
        return NetworkPrior

    @staticmethod
    def condition_conv(image_channels: int, coarsest: Scale, channels: int) -> nn.Module:
        """From the pooled rendering of the context to a scale's state."""
        return nn.Conv2d(image_channels, channels, 3, padding=1)

    def infer_top(self, x: Tensor, noise: Noise, temperature: float) -> list[Latent]:
        """The context of x (B, C, H, W), without its KL."""
        active = self.context.active
        u, q = self.context_posterior(self.context.encode(x), active, noise, temperature)
        return [Latent(u, q, self.context_prior.context_density(active, noise))]

    def sample_top(self, n: int, noise: Noise, temperature: float) -> list[Latent]:
        """A context from its prior."""
        p = self.context_prior.context_density(self.context.active, noise)
        return [Latent(self.to_levels(p.sample_n(n, noise, temperature)), None, p)]

    def to_levels(self, u: Tensor) -> Tensor:
        """A draw from the prior as a context: the nearest level where contexts are discrete."""
        return u if self.context_posterior.continuous else quantise(u, self.bits)

    def start(self, n: int, top: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Zero map + 3×3(rendering of the context, pooled); the rendering itself (B, C, H, W)."""
        image = self.context.render(top[0])
        return self.context_conv(self.resize_condition(image, self.start_shape[-1])), image

    def resize_condition(self, condition: Tensor, size: int) -> Tensor:
        """The rendering of the context at a scale's resolution."""
        return F.avg_pool2d(condition, condition.shape[-1] // size)
