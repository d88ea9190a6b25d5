"""The likelihoods p(x | z, u): from the decoder's head to log-probabilities per image.

`log_prob` takes x (B, C, H, W) in [−1, 1] and returns (B,) nats; `log_density` does so without a
check. `temperature` scales the variance of `sample`: 0 gives thresholds and locations and draws
nothing. `levels`: of the grey values.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.arguments import check_images
from model.distributions import Gaussian, log_softplus, softplus, sum_per_image
from model.noise import Noise


class PixelLikelihood:
    """p(x | z, u): `log_prob` for users, `log_density` for what knows its x."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        raise NotImplementedError

    def log_density(self, x: Tensor) -> Tensor:
        """`log_prob` without a look at x."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x | z, u) of images (B, C, H, W) in [−1, 1]: (B,) nats.

        Raises:
            ValueError: if x is something else.
        """
        check_images(x, self.image_shape)
        return self.log_density(x)


@dataclass(frozen=True)
class Bernoulli(PixelLikelihood):
    """Binary pixels; `log_prob` takes the expectation over binarisations of a grey target."""

    logits: Tensor  # (B, C, H, W)

    @staticmethod
    def head_channels(channels: int, num_mix: int) -> int:
        """One logit per channel."""
        return channels

    @classmethod
    def from_head(cls, head: Tensor, channels: int, levels: int) -> "Bernoulli":
        """Head (B, C, H, W): the logits."""
        return cls(head)

    @staticmethod
    def target(x: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Dynamic binarisation: −1 or 1, drawn with the pixel's intensity (> ½ at 0)."""
        intensity = 0.5 * (x + 1.0)
        threshold = 0.5 if temperature == 0 else noise.uniform(*x.shape[1:], dtype=x.dtype)
        return torch.where(intensity > threshold, 1.0, -1.0).to(x)

    @property
    def probs(self) -> Tensor:
        """P(pixel = 1)."""
        return self.logits.sigmoid()

    @property
    def mean(self) -> Tensor:
        """2·probs − 1, in [−1, 1]."""
        return 2.0 * self.probs - 1.0

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.logits.shape[1:])

    def log_density(self, x: Tensor) -> Tensor:
        """Σ t·log p + (1 − t)·log(1 − p) with t = (x + 1)/2: (B,) nats."""
        return sum_per_image(0.5 * (x + 1.0) * self.logits - F.softplus(self.logits))

    def sample(self, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """Pixels in {−1, 1}, from the logits divided by the temperature."""
        if temperature == 0:
            return torch.where(self.logits > 0, 1.0, -1.0).to(self.logits)
        noise = noise or Noise.fresh(len(self.logits), self.logits.device)
        drawn = noise.uniform(*self.logits.shape[1:], dtype=self.logits.dtype)
        on = drawn < (self.logits / temperature).sigmoid()
        return torch.where(on, 1.0, -1.0).to(self.logits)


class _GreyTarget(PixelLikelihood):
    """For likelihoods of the grey levels themselves, the target is x."""

    means: Tensor

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return (self.means.shape[1], *self.means.shape[-2:])

    @staticmethod
    def target(x: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        """x itself."""
        return x


@dataclass(frozen=True)
class GaussianPixels(_GreyTarget):
    """A density per pixel: N(mean, softplus_0.7(clamp(raw, −5, 5)))."""

    means: Tensor
    raw: Tensor

    @staticmethod
    def head_channels(channels: int, num_mix: int) -> int:
        """Means, then raw variances."""
        return 2 * channels

    @classmethod
    def from_head(cls, head: Tensor, channels: int, levels: int) -> "GaussianPixels":
        """Head (B, 2C, H, W)."""
        return cls(*head.chunk(2, dim=1))

    @property
    def density(self) -> Gaussian:
        """The pixels' Gaussian."""
        return Gaussian(self.means, log_softplus(self.raw.clamp(-5.0, 5.0), 0.7))

    @property
    def mean(self) -> Tensor:
        """Means, clamped to [−1, 1]."""
        return self.means.clamp(-1.0, 1.0)

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density of x on the [−1, 1] scale: (B,) nats."""
        return sum_per_image(self.density.log_prob(x))

    def sample(self, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """A draw, clamped to [−1, 1]."""
        noise = noise or Noise.fresh(len(self.means), self.means.device)
        return self.density.sample(noise, temperature).clamp(-1.0, 1.0)


def discretised_logistic_log_prob(
    x: Tensor, mean: Tensor, scale: Tensor, levels: int = 256
) -> Tensor:
    """log of the logistic's mass in x's bin, element-wise, stable in log space.

    σ(b) − σ(a) = σ(b)·σ(−a)·(1 − e^{a−b}); bins reach half a level (1/255 for 256 levels) to each
    side, the outermost to ±∞.
    """
    half = 1.0 / (levels - 1)
    upper, lower = (x + half - mean) / scale, (x - half - mean) / scale
    log_below, log_above = F.logsigmoid(upper), F.logsigmoid(-lower)
    inner = log_below + log_above + torch.log(-torch.expm1(-2.0 * half / scale))
    edge = 1.0 - 0.5 * half
    return torch.where(x < -edge, log_below, torch.where(x > edge, log_above, inner))


def _logistic_draw(
    mean: Tensor, scale: Tensor, levels: int, temperature: float, noise: Noise
) -> Tensor:
    """A draw on the levels of [−1, 1], with the logistic's variance scaled by the temperature."""
    if temperature > 0:
        drawn = noise.uniform(*mean.shape[1:], dtype=mean.dtype).clamp(1e-7, 1.0 - 1e-7)
        mean = mean + math.sqrt(temperature) * scale * torch.logit(drawn)
    half = 0.5 * (levels - 1)
    return ((mean.clamp(-1.0, 1.0) + 1.0) * half).round() / half - 1.0


@dataclass(frozen=True)
class DiscretisedLogistic(_GreyTarget):
    """One discretised logistic per pixel and channel."""

    means: Tensor
    raw: Tensor
    levels: int = 256

    @staticmethod
    def head_channels(channels: int, num_mix: int) -> int:
        """Means, then raw scales."""
        return 2 * channels

    @classmethod
    def from_head(cls, head: Tensor, channels: int, levels: int) -> "DiscretisedLogistic":
        """Head (B, 2C, H, W)."""
        return cls(*head.chunk(2, dim=1), levels)

    @property
    def scale(self) -> Tensor:
        """softplus_0.4(max(raw, −20))."""
        return softplus(self.raw.clamp(min=-20.0), 0.4)

    @property
    def mean(self) -> Tensor:
        """Locations, clamped to [−1, 1]."""
        return self.means.clamp(-1.0, 1.0)

    def log_density(self, x: Tensor) -> Tensor:
        """(B,) nats."""
        return sum_per_image(discretised_logistic_log_prob(x, self.means, self.scale, self.levels))

    def sample(self, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """A draw on the levels of [−1, 1]."""
        noise = noise or Noise.fresh(len(self.means), self.means.device)
        return _logistic_draw(self.means, self.scale, self.levels, temperature, noise)


@dataclass(frozen=True)
class LogisticMixture(_GreyTarget):
    """M discretised logistics per pixel, mixture weights shared by the channels."""

    logits: Tensor  # (B, M, H, W)
    means: Tensor  # (B, C, M, H, W)
    raw: Tensor  # (B, C, M, H, W)
    levels: int = 256

    @staticmethod
    def head_channels(channels: int, num_mix: int) -> int:
        """M logits, then (C, 2M): means and raw scales."""
        return num_mix * (1 + 2 * channels)

    @classmethod
    def from_head(cls, head: Tensor, channels: int, levels: int) -> "LogisticMixture":
        """Head (B, M + 2MC, H, W)."""
        num_mix = head.shape[1] // (1 + 2 * channels)
        rest = head[:, num_mix:].unflatten(1, (channels, 2 * num_mix))
        return cls(head[:, :num_mix], *rest.chunk(2, dim=2), levels)

    @property
    def scale(self) -> Tensor:
        """softplus_0.4(max(raw, −20))."""
        return softplus(self.raw.clamp(min=-20.0), 0.4)

    @property
    def mean(self) -> Tensor:
        """Σ_k π_k·clamp(mean_k, −1, 1): (B, C, H, W)."""
        return (self.logits.softmax(1)[:, None] * self.means.clamp(-1.0, 1.0)).sum(2)

    def log_density(self, x: Tensor) -> Tensor:
        """Σ_pixels logsumexp_k(log π_k + Σ_channels log p_k): (B,) nats."""
        per_channel = discretised_logistic_log_prob(
            x[:, :, None], self.means, self.scale, self.levels
        )
        per_component = self.logits.log_softmax(1) + per_channel.sum(1)  # (B, M, H, W)
        return sum_per_image(per_component.logsumexp(1))

    def sample(self, temperature: float = 1.0, noise: Noise | None = None) -> Tensor:
        """A component per pixel (logits divided by the temperature), then a draw from it."""
        noise = noise or Noise.fresh(len(self.logits), self.logits.device)
        scores = self.logits
        if temperature > 0:
            drawn = noise.uniform(*scores.shape[1:], dtype=scores.dtype).clamp(1e-7, 1.0 - 1e-7)
            scores = scores / temperature - (-drawn.log()).log()  # Gumbel-max
        chosen = scores.argmax(1)[:, None, None].expand(-1, self.means.shape[1], 1, -1, -1)
        mean = self.means.gather(2, chosen).squeeze(2)
        scale = self.scale.gather(2, chosen).squeeze(2)
        return _logistic_draw(mean, scale, self.levels, temperature, noise)


LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "gaussian": GaussianPixels,
    "logistic": DiscretisedLogistic,
    "logistic_mixture": LogisticMixture,
}
Likelihood = Bernoulli | GaussianPixels | DiscretisedLogistic | LogisticMixture
