"""Top-down: the context and the encoder's features -> z_L … z_1 -> the likelihood's parameters.

    s (B, c, h, h)  the deterministic state, from a zero map at the coarsest scale to the image
    s ← s + f;  s ← block(s + 1×1(z));  upsample after a scale's last latent

Sections 2 and 3 of arXiv 2302.09976. Latents are listed from the top, the context first.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.context import CONTEXTS, ContextPosterior, quantise
from model.diffusion import DiffusionDensity, DiffusionPrior
from model.distributions import Gaussian, TwoPoint
from model.layers import (
    BlockStyle,
    at_least_float32,
    channels_last,
    decoder_block,
    decoder_net,
    last_conv,
    zero_init,
)
from model.noise import Noise
from model.priors import LatentSite, LogVariance, NetworkPrior
from model.scales import Scale


@dataclass(frozen=True)
class Latent:
    """One layer: z (B, w, h, h), its posterior q and prior p, and KL per element (nats).

    q is None where there was no feature to infer it from, kl where z did not come from q.
    """

    z: Tensor
    q: Gaussian | TwoPoint | None
    p: Gaussian | DiffusionDensity
    kl: Tensor | None


class LatentBlock(nn.Module):
    """Prior, posterior and state update of one Gaussian latent."""

    def __init__(
        self,
        scale: Scale,
        out_channels: int,
        style: BlockStyle,
        prior: nn.Module,
        log_variance: LogVariance,
        num_blocks: int,
        disconnect: bool,
        num_latents: int,
    ):
        super().__init__()
        channels, width = scale.channels, scale.width
        self.width, self.log_variance, self.disconnect = width, log_variance, disconnect
        self.prior = prior
        self.posterior_net = decoder_net(channels, 2 * width, style)
        nn.init.uniform_(last_conv(self.posterior_net).weight, -1.0, 1.0)
        self.z_conv = nn.Conv2d(width, channels, 1)
        outs = [channels] * (num_blocks - 1) + [out_channels]
        self.blocks = nn.Sequential(*(decoder_block(channels, out, style) for out in outs))
        with torch.no_grad():  # variance grows with depth: scale what each latent adds
            for conv in [self.z_conv, *(last_conv(block.net) for block in self.blocks)]:
                conv.weight.mul_(math.sqrt(1.0 / num_latents))

    def posterior(self, s: Tensor, feature: Tensor) -> Gaussian:
        """q(z | s, feature)."""
        h = self.posterior_net(feature if self.disconnect else feature + s)
        mean, raw = at_least_float32(h).chunk(2, dim=1)
        if isinstance(self.prior, DiffusionPrior):
            mean = mean.tanh()  # the diffusion works on [−1, 1]
        return Gaussian(mean, self.log_variance(raw))

    def forward(
        self,
        s: Tensor,
        feature: Tensor | None,
        given: Tensor | None,
        noise: Noise,
        temperature: float,
    ) -> tuple[Latent, Tensor]:
        """z as given, else from the posterior where there is a feature, else from the prior."""
        p, features = self.prior(s, noise)
        q = None if feature is None else self.posterior(s, feature)
        kl = None
        if given is not None:
            z = given
        elif q is not None:
            z = q.sample(noise, temperature)
            kl = p.kl_from(q, z)
        else:
            z = p.sample_n(len(s), noise, temperature)
        if features is not None:
            s = s + features
        return Latent(z, q, p, kl), self.blocks(s + self.z_conv(channels_last(z)))


class LadderDecoder(nn.Module):
    """The plain ladder: the top latent is a block like any other, its prior is `z_L_prior`."""

    num_top = 0

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        head_channels: int,
        scales: list[Scale],
        style: BlockStyle,
        z_L_prior: Callable[[LatentSite], nn.Module],
        num_blocks_per_scale: int,
        num_postprocess_blocks: int,
        var_mode: str,
        softplus_beta: float,
        disconnect: bool,
        condition_on_last: bool,
    ):
        super().__init__()
        self.style, self.log_variance = style, LogVariance(var_mode, softplus_beta)
        coarsest, finest = scales[-1], scales[0]
        self.start_shape = (coarsest.channels, coarsest.size, coarsest.size)
        num_latents = sum(scale.num_latents for scale in scales)
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
                    )
                )
                self.upsampling.append(scale.factor if last else 1)
                self.scale_index.append(index if last else None)
        self.condition = nn.ModuleList()
        if condition_on_last:
            for scale in reversed(scales[:-1]):
                self.condition.append(self.condition_conv(image_shape[0], coarsest, scale.channels))
        channels = finest.channels
        post = [decoder_block(channels, channels, style) for _ in range(num_postprocess_blocks)]
        if post:
            zero_init(last_conv(post[-1].net))
        head = nn.Conv2d(channels, head_channels, 3, padding=1)
        nn.init.zeros_(head.bias)
        self.head = nn.Sequential(*post, head)

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

    def infer_top(
        self, x: Tensor, noise: Noise, temperature: float, published: bool = False
    ) -> list[Latent]:
        """The `num_top` latents that come before the ladder's: none here."""
        return []

    def sample_top(self, n: int, noise: Noise, temperature: float) -> list[Latent]:
        """Their draws from the prior: none here."""
        return []

    def start(self, n: int, top: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """The state at the coarsest scale and, where known, what conditions later scales."""
        weight = self.blocks[0].z_conv.weight
        return torch.zeros(n, *self.start_shape, dtype=weight.dtype, device=weight.device), None

    def resize_condition(self, condition: Tensor, size: int) -> Tensor:
        """The top latent at a scale's resolution."""
        return F.interpolate(condition, size=(size, size), mode="nearest")

    def descend(
        self,
        n: int,
        top: Sequence[Tensor],
        features: Sequence[Tensor | None] | None,
        given: Sequence[Tensor],
        noise: Noise,
        temperature: float = 1.0,
    ) -> tuple[list[Latent], Tensor]:
        """From the top's values to the Gaussian latents (top to bottom) and the head's output.

        features: the encoder's, bottom up; where there is none, the latent is its prior's.
        given: values of the first Gaussian latents, used as they are.
        """
        s, condition = self.start(n, top)
        latents, conditioned = [], iter(self.condition)
        for index, block in enumerate(self.blocks):
            feature = features[-1 - index] if features is not None else None
            value = given[index] if index < len(given) else None
            latent, s = block(s, feature, value, noise, temperature)
            latents.append(latent)
            condition = latent.z if condition is None else condition
            if self.upsampling[index] > 1:
                s = F.interpolate(s, scale_factor=self.upsampling[index], mode="nearest")
            if self.scale_index[index]:  # between two scales, not after the finest
                conv = next(conditioned, None)
                if conv is not None:
                    s = s + conv(self.resize_condition(condition, s.shape[-1]))
        return latents, at_least_float32(self.head(s))


class ContextDecoder(LadderDecoder):
    """The ladder under a context: a quantised DCT of x (or x downsampled), diffusion prior."""

    num_top = 1

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        head_channels: int,
        scales: list[Scale],
        style: BlockStyle,
        z_L_prior: Callable[[LatentSite], DiffusionPrior],
        ctx_size: int,
        ctx_type: str,
        ctx_posterior_var: str,
        ctx_posterior_var_init: float,
        z_L_bits: int,
        **ladder,
    ):
        super().__init__(image_shape, head_channels, scales, style, z_L_prior, **ladder)
        channels, size, _ = image_shape
        coarsest = scales[-1]
        self.bits = z_L_bits
        self.context = CONTEXTS[ctx_type](channels, size, ctx_size)
        self.context_posterior = ContextPosterior(
            ctx_posterior_var, ctx_posterior_var_init, channels, ctx_size, z_L_bits
        )
        bits = None if self.context_posterior.continuous else z_L_bits
        site = LatentSite(channels, ctx_size, bits, coarsest.channels, style, self.log_variance)
        self.context_prior = z_L_prior(site)
        self.context_conv = nn.Conv2d(channels, coarsest.channels, 3, padding=1)

    @staticmethod
    def first_prior(z_L_prior: Callable) -> Callable:
        """The prior of the first block is a net like any other's: `z_L_prior` is the context's."""
        return NetworkPrior

    @staticmethod
    def condition_conv(image_channels: int, coarsest: Scale, channels: int) -> nn.Module:
        """From the pooled rendering of the context to a scale's state."""
        return nn.Conv2d(image_channels, channels, 3, padding=1)

    def infer_top(
        self, x: Tensor, noise: Noise, temperature: float, published: bool = False
    ) -> list[Latent]:
        """The context of x (B, C, H, W); published: with the published prior term as its kl."""
        active = self.context.active
        u, q = self.context_posterior(self.context.encode(x), active, noise, temperature)
        p = DiffusionDensity(self.context_prior, active, noise)
        kl = p.published_kl_from(q, u) if published else p.kl_from(q, u)
        return [Latent(u, q, p, kl)]

    def sample_top(self, n: int, noise: Noise, temperature: float) -> list[Latent]:
        """A context from the diffusion prior, brought back to its levels."""
        p = DiffusionDensity(self.context_prior, self.context.active, noise)
        u = p.sample_n(n, noise, temperature)
        return [Latent(quantise(u.clamp(-1.0, 1.0), self.bits), None, p, None)]

    def start(self, n: int, top: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Zero map + 3×3(rendering of the context, pooled); the rendering itself (B, C, H, W)."""
        image = self.context.render(top[0])
        return self.context_conv(self.resize_condition(image, self.start_shape[-1])), image

    def resize_condition(self, condition: Tensor, size: int) -> Tensor:
        """The rendering of the context at a scale's resolution."""
        return F.avg_pool2d(condition, condition.shape[-1] // size)
