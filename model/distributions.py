"""Distributions of the latents: Gaussians, and the two points of the dithered context.

All work element by element, like torch.distributions: (B, w, h, h) in and out, nats.
`temperature` scales the variance: 0 gives the means and draws nothing.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model.density import Density
from model.noise import Noise

LOG_2PI = math.log(2.0 * math.pi)
LEVEL_TOLERANCE = 1e-4  # far below the spacing of up to 2^10 levels, far above float32 rounding


def softplus(raw: Tensor, beta: float) -> Tensor:
    """ln(1 + e^{β·raw}) / β."""
    return F.softplus(raw, beta=beta)


def log_softplus(raw: Tensor, beta: float) -> Tensor:
    """log softplus_β(raw), finite with a finite gradient down to raw = −20/β (constant below)."""
    return softplus(raw.clamp(min=-20.0 / beta), beta).log()


def sum_per_image(x: Tensor) -> Tensor:
    """(B, …) -> (B,)."""
    return x.flatten(1).sum(1)


@dataclass(frozen=True)
class Gaussian(Density):
    """Diagonal N(mean, e^logvar)."""

    mean: Tensor
    logvar: Tensor

    kl_is_exact = True

    @property
    def variance(self) -> Tensor:
        """e^logvar."""
        return self.logvar.exp()

    @property
    def stddev(self) -> Tensor:
        """e^{logvar/2}."""
        return (0.5 * self.logvar).exp()

    def sample(self, noise: Noise, temperature: float = 1.0) -> Tensor:
        """A reparametrised draw with variance temperature · e^logvar."""
        if temperature == 0:
            return self.mean
        return self.mean + math.sqrt(temperature) * self.stddev * noise.normal_like(self.mean)

    def sample_n(self, n: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """`sample`, for a batch that is n already."""
        return self.sample(noise, temperature)

    def log_prob(self, z: Tensor) -> Tensor:
        """Element-wise log-density in nats."""
        return -0.5 * ((z - self.mean).square() / self.variance + self.logvar + LOG_2PI)

    def entropy(self) -> Tensor:
        """Element-wise differential entropy in nats."""
        return 0.5 * (self.logvar + LOG_2PI + 1.0)

    def kl(self, other: "Gaussian") -> Tensor:
        """Element-wise KL(self ‖ other) in nats."""
        return 0.5 * (
            other.logvar
            - self.logvar
            + (self.logvar - other.logvar).exp()
            + (self.mean - other.mean).square() * (-other.logvar).exp()
            - 1.0
        )

    def kl_from(self, q: "Gaussian", z: Tensor) -> Tensor:
        """KL(q ‖ self), element-wise: exact, so that the sample z is not needed."""
        return q.kl(self)

    def residuals(self, z: Tensor) -> Tensor:
        """(z − mean)/stddev, element-wise."""
        return (z - self.mean) / self.stddev


@dataclass(frozen=True)
class TwoPoint:
    """Element-wise: `high` with probability `p_high`, `low` otherwise (a dithered quantiser).

    Where the two are one point, p_high is 0.
    """

    low: Tensor
    high: Tensor
    p_high: Tensor

    @property
    def mean(self) -> Tensor:
        """Expected value."""
        return self.low + self.p_high * (self.high - self.low)

    @property
    def variance(self) -> Tensor:
        """p(1 − p)·(high − low)²."""
        return self.p_high * (1.0 - self.p_high) * (self.high - self.low).square()

    @property
    def stddev(self) -> Tensor:
        """Square root of the variance."""
        return self.variance.sqrt()

    def sample(self, noise: Noise) -> Tensor:
        """One of the two points."""
        drawn = noise.uniform(*self.low.shape[1:], dtype=self.low.dtype)
        return torch.where(drawn < self.p_high, self.high, self.low)

    def log_prob(self, u: Tensor) -> Tensor:
        """Element-wise log-probability of u; −inf off the two points."""
        p = self.p_high * ((u - self.high).abs() < LEVEL_TOLERANCE)
        return (p + (1.0 - self.p_high) * ((u - self.low).abs() < LEVEL_TOLERANCE)).log()

    def entropy(self) -> Tensor:
        """Element-wise entropy in nats."""
        q_high = 1.0 - self.p_high
        return -torch.xlogy(self.p_high, self.p_high) - torch.xlogy(q_high, q_high)
