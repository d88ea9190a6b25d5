"""How a latent's posterior follows from its net's output (Δ or mean, raw) and from its prior p.

    absolute    N(mean, e^logvar(raw)), whatever the prior is
    residual    N(μ_p + σ_p Δ, σ_p² e^raw): relative to the prior (Vahdat & Kautz 2020)
    committed   N(μ_p + σ_p Δ, σ_p² r e^−softplus(raw)), so that KL(q ‖ p) ≥ δ for every element

Of Gaussians KL(q ‖ p) = ½(Δ² + ρ − 1 − ln ρ) with ρ = σ_q²/σ_p². It falls in ρ < 1, so that ρ ≤ r
commits every image to the rate δ = ½(r − 1 − ln r) (after Razavi et al. 2019, who confine the
posteriors of sequences). The rate says nothing of information: with Δ = 0 everywhere the KL is δ
or more, and z is independent of x. Shapes: all (B, w, h, h).
"""

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from model.density import Density
from model.distributions import Gaussian
from model.priors import LogVariance

RAW_RANGE = 5.0  # of what a relative posterior's net says of its log variance ratio
PosteriorForm = Callable[[Tensor, Tensor, Density], Gaussian]
POSTERIORS = ("absolute", "residual", "committed")


def posterior_form(
    kind: str, log_variance: LogVariance, bounded: bool, delta: float | None
) -> PosteriorForm:
    """The function of (Δ or mean, raw, p) that makes a posterior.

    A prior that is no Gaussian has an absolute posterior, whatever the kind. bounded: whether z
    lies in [−1, 1], into which an absolute posterior's mean is squashed. delta: nats per element.
    """

    def absolute(mean: Tensor, raw: Tensor, p: Density) -> Gaussian:
        return Gaussian(mean.tanh() if bounded else mean, log_variance(raw))

    def relative(shift: Tensor, log_ratio: Tensor, p: Gaussian) -> Gaussian:
        return Gaussian(p.mean + p.stddev * shift, p.logvar + log_ratio)

    def residual(shift: Tensor, raw: Tensor, p: Density) -> Gaussian:
        if not isinstance(p, Gaussian):
            return absolute(shift, raw, p)
        return relative(shift, raw.clamp(-RAW_RANGE, RAW_RANGE), p)

    def committed(shift: Tensor, raw: Tensor, p: Density) -> Gaussian:
        return relative(shift, log_r - F.softplus(raw.clamp(max=RAW_RANGE)), p)

    if kind == "committed":
        log_r = math.log(variance_ratio(delta))
    return {"absolute": absolute, "residual": residual, "committed": committed}[kind]


def variance_ratio(delta: float) -> float:
    """r in (0, 1) with ½(r − 1 − ln r) = delta > 0 nats: −W₀(−e^(−2δ − 1))."""
    from scipy.special import lambertw  # 0.1 s, for one kind of posterior

    return -lambertw(-math.exp(-2.0 * delta - 1.0)).real


def rate(ratio: float) -> float:
    """½(r − 1 − ln r) nats: KL(N(μ, r σ²) ‖ N(μ, σ²))."""
    return 0.5 * (ratio - 1.0 - math.log(ratio))
