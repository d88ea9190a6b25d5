"""The discretised Gaussian p(u | u_0) that ends the diffusion, true and as it was published."""

import math

import torch
from torch import Tensor

from model.distributions import Gaussian

FLOOR = 1e-12  # smallest probability of a bin; no gradient below it


def discretised_gaussian_log_prob(u: Tensor, p: Gaussian, bits: int, published: bool) -> Tensor:
    """log of N(mean, variance)'s mass in u's bin, element-wise, floored at log 1e-12.

    Levels are 2/2^b apart. True bins have half-width h = 1/2^b and sum to one. The published form
    has h = 1/(2^b − 1) and a tanh for Φ: bins wider than the distance between levels, so that the
    probabilities of all levels add up to as much as 2.
    """
    half = 1.0 / (2**bits - 1) if published else 1.0 / 2**bits
    upper, lower = (u + half - p.mean) / p.stddev, (u - half - p.mean) / p.stddev
    edge = 1.0 - 1.5 / 2**bits  # between the outermost level and the next
    if published:
        cdf_upper, cdf_lower = _published_cdf(upper), _published_cdf(lower)
        inner = cdf_upper - cdf_lower
        below, above = cdf_upper, 1.0 - cdf_lower
    else:
        # Differences are taken in the lower tail, where floats are fine.
        inner = torch.where(
            lower > 0,
            _normal_cdf(-lower) - _normal_cdf(-upper),
            _normal_cdf(upper) - _normal_cdf(lower),
        )
        below, above = _normal_cdf(upper), _normal_cdf(-lower)
    mass = torch.where(u < -edge, below, torch.where(u > edge, above, inner))
    return mass.clamp(min=FLOOR).log()


def _normal_cdf(a: Tensor) -> Tensor:
    """By erfc: in float32, torch.special.ndtr is 0 below −6, where this is still exact."""
    return 0.5 * torch.special.erfc(a * -math.sqrt(0.5))


def _published_cdf(a: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (a + 0.044715 * a**3)))
