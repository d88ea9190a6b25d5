"""Priors of the Gaussian latents: the net that every block has, and the plain ladder's other tops.

A prior takes the state s (B, c, h, h) and returns (p(z | s), features to add to s or None).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.distributions import Gaussian, log_softplus
from model.layers import BlockStyle, at_least_float32, prior_net
from model.noise import Noise


@dataclass(frozen=True)
class LogVariance:
    """Raw output to log-variance in [−5, 0]: log softplus_β(raw) (`softplus`) or raw (`log`)."""

    var_mode: str
    softplus_beta: float

    def __call__(self, raw: Tensor) -> Tensor:
        """Same shape in and out."""
        logvar = log_softplus(raw, self.softplus_beta) if self.var_mode == "softplus" else raw
        return logvar.clamp(-5.0, 0.0)


@dataclass(frozen=True)
class LatentSite:
    """Where a latent sits, as far as its prior needs to know."""

    width: int  # channels of the latent
    size: int  # its height and width
    bits: int | None  # of its levels, where it is discrete
    channels: int  # of the decoder's state
    style: BlockStyle
    log_variance: LogVariance


class NetworkPrior(nn.Module):
    """s -> prior block -> mean (w), raw scale (w), features (c)."""

    def __init__(self, site: LatentSite):
        super().__init__()
        self.split = [site.width, site.width, site.channels]
        self.log_variance = site.log_variance
        self.net = prior_net(site.channels, sum(self.split), site.style)

    def forward(self, s: Tensor, noise: Noise) -> tuple[Gaussian, Tensor]:
        """p(z | s) and the features."""
        mean, raw, features = self.net(s).split(self.split, dim=1)
        logvar = self.log_variance(at_least_float32(raw))
        return Gaussian(at_least_float32(mean), logvar), features


class StandardPrior(nn.Module):
    """N(0, I), whatever the state."""

    def __init__(self, site: LatentSite):
        super().__init__()
        shape = (site.width, site.size, site.size)
        self.register_buffer("zero", torch.zeros(shape), persistent=False)

    def forward(self, s: Tensor, noise: Noise) -> tuple[Gaussian, None]:
        """p(z), no features."""
        zero = self.zero.expand(len(s), -1, -1, -1)
        return Gaussian(zero, zero), None


class GaussianPrior(nn.Module):
    """A free mean and log-variance (clamped to [−4, 0]) per element."""

    def __init__(self, site: LatentSite):
        super().__init__()
        shape = (site.width, site.size, site.size)
        self.mean = nn.Parameter(torch.zeros(shape))
        self.logvar = nn.Parameter(torch.zeros(shape))

    def forward(self, s: Tensor, noise: Noise) -> tuple[Gaussian, None]:
        """p(z), no features."""
        logvar = self.logvar.clamp(-4.0, 0.0)
        return Gaussian(*(a.expand(len(s), -1, -1, -1) for a in (self.mean, logvar))), None
