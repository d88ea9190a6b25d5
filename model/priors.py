"""Priors of the latents: the net that every block has, and the plain ladder's other top priors.

A prior takes the state s (B, c, h, h) and returns (p(z | s), features to add to s or None).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.density import Density
from model.distributions import Gaussian, log_softplus
from model.layers import BlockStyle, at_least_float32, prior_net, split_channels
from model.noise import Noise
from model.part import Part


@dataclass(frozen=True)
class LogVariance:
    """Raw output to log-variance in [−5, 0]: log softplus_β(raw) (`softplus`) or raw (`log`)."""

    var_mode: str
    softplus_beta: float

    def __call__(self, raw: Tensor) -> Tensor:
        """Element-wise."""
        logvar = log_softplus(raw, self.softplus_beta) if self.var_mode == "softplus" else raw
        return logvar.clamp(-5.0, 0.0)


@dataclass(frozen=True)
class LatentSite:
    """A latent's shape and surroundings, from which its prior is built."""

    width: int  # channels of the latent
    size: int  # its height and width
    bits: int | None  # it has 2^bits levels; None: continuous
    channels: int  # of the decoder's state
    style: BlockStyle
    log_variance: LogVariance


class Prior(Part):
    """The prior of one latent, built from its `LatentSite`."""

    bounded = False  # whether z lies in [−1, 1], into which a posterior's mean is then squashed
    gaussian = False  # whether every p(z | s) is a `Gaussian`, as relative posteriors want it
    uses_paths = False  # whether its density's `log_weight` is estimated from sampled paths
    cpu_memory_format = torch.channels_last  # in which its convolutions are fast on a CPU

    def forward(self, s: Tensor, noise: Noise) -> tuple[Density, Tensor | None]:
        """p(z | s) and, where the prior makes any, features (B, c, h, h) to add to the state."""
        raise NotImplementedError

    def context_density(self, active: Tensor, noise: Noise) -> Density:
        """p(u) of a context, which is constant except where `active` (C, d, d) is 1.

        Only bounded priors need it: a context lies in [−1, 1].
        """
        raise NotImplementedError

    def after_optimizer_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """Update what is learned without gradients; total: sums over the batch's processes."""


class NetworkPrior(Prior):
    """s -> prior block -> mean (w), raw scale (w), features (c)."""

    gaussian = True

    def __init__(self, site: LatentSite):
        super().__init__()
        self.split = [site.width, site.width, site.channels]
        self.log_variance = site.log_variance
        self.net = prior_net(site.channels, sum(self.split), site.style)

    def forward(self, s: Tensor, noise: Noise) -> tuple[Gaussian, Tensor]:
        """p(z | s) and the features."""
        mean, raw, features = split_channels(self.net(s), self.split)
        logvar = self.log_variance(at_least_float32(raw))
        return Gaussian(at_least_float32(mean), logvar), features


class StandardPrior(Prior):
    """N(0, I), whatever the state."""

    gaussian = True

    def __init__(self, site: LatentSite):
        super().__init__()
        shape = (site.width, site.size, site.size)
        self.register_buffer("zero", torch.zeros(shape), persistent=False)

    def forward(self, s: Tensor, noise: Noise) -> tuple[Gaussian, None]:
        """p(z), no features."""
        zero = self.zero.expand(len(s), -1, -1, -1)
        return Gaussian(zero, zero), None


class GaussianPrior(Prior):
    """A free mean and log-variance (clamped to [−4, 0]) per element."""

    gaussian = True

    def __init__(self, site: LatentSite):
        super().__init__()
        shape = (site.width, site.size, site.size)
        self.mean = nn.Parameter(torch.zeros(shape))
        self.logvar = nn.Parameter(torch.zeros(shape))

    def forward(self, s: Tensor, noise: Noise) -> tuple[Gaussian, None]:
        """p(z), no features."""
        logvar = self.logvar.clamp(-4.0, 0.0)
        return Gaussian(*(a.expand(len(s), -1, -1, -1) for a in (self.mean, logvar))), None
