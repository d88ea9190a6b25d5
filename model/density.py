"""What a latent's prior density must be able to do: the protocol between priors and bounds."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.noise import Noise

if TYPE_CHECKING:
    from model.distributions import Gaussian, TwoPoint


class Density(ABC):
    """p(z | what is above it) of one layer for a batch, as a prior returns it.

    z and everything per element are (B, w, h, h); probabilities are in nats. Besides the methods a
    density has a `mean` and a `stddev` that broadcast to z.
    """

    kl_is_exact = False  # whether `kl_from` is the KL itself, not an estimate from the sample z
    num_levels: int | None = None  # evenly spaced values in [−1, 1] that z takes; None: any value

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), or a lower bound on it, per element."""

    @abstractmethod
    def kl_from(self, q: "Gaussian | TwoPoint", z: Tensor) -> Tensor:
        """KL(q ‖ p) per element, or an unbiased estimate of (a bound on) it from z ~ q."""

    @abstractmethod
    def sample_n(self, n: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """n draws: (n, w, h, h)."""

    def published_kl_from(self, q: "Gaussian | TwoPoint", z: Tensor) -> Tensor:
        """`kl_from` as the published code computes it, where that differs."""
        return self.kl_from(q, z)

    def log_weight(self, z: Tensor, noise: Noise, paths: int) -> Tensor:
        """log of p(z), or of an unbiased estimate of p(z) from `paths` sampled paths: (B,) nats."""
        return self.log_prob(z).flatten(1).sum(1)

    def residuals(self, z: Tensor) -> Tensor | None:
        """(z − E z)/σ per element where p is Gaussian, so that they are N(0, 1) under it."""
        return None

    def active_mask(self, z: Tensor) -> Tensor:
        """Which elements of z are not constant over the data: booleans of z's shape."""
        return torch.ones_like(z, dtype=torch.bool)
