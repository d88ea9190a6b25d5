"""The diffusion prior p(u): u = noised once at t = 0, …, nearly pure noise at t = T − 1.

    p(u) = E over paths of p(u_{T−1}) Π_{t≥1} p(u_{t−1} | u_t) p(u | u_0)

Ho et al. 2020, with the discretised Gaussian at the last step; section 3 of arXiv 2302.09976.
Terms are per element, (B, C, d, d) in nats, so that elements that carry nothing can be left out.
A step t is (B,), or (1,) where all images are at the same one: the net then embeds it once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.distributions import Gaussian, TwoPoint, sum_per_image
from model.layers import at_least_float32
from model.noise import Noise
from model.priors import LatentSite

FLOOR = 1e-12  # probability under which a discretised Gaussian's bin is not followed
LOSS_MEMORY = 0.95  # of the running mean of each step's loss
UNIFORM_SHARE = 0.05  # of loss-aware draws of t, so that no step is ever starved
MOMENT_SAMPLES = 256


def linear_betas(steps: int) -> np.ndarray:
    """β_0 … β_{T−1}, evenly from a scale's smallest to its largest value, in float64."""
    scale, smallest = (100.0 / steps, 0.01) if steps < 21 else (1000.0 / steps, 0.001)
    return np.linspace(scale * smallest, scale * 0.02, steps, dtype=np.float64)


def cosine_betas(steps: int) -> np.ndarray:
    """β_0 … β_{T−1} of Nichol & Dhariwal 2021, eq. 17, at most 0.999, in float64."""
    times = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


SCHEDULES = {"linear": linear_betas, "cosine": cosine_betas}


def discretised_gaussian_log_prob(u: Tensor, p: Gaussian, bits: int, published: bool) -> Tensor:
    """log of N(mean, variance)'s mass in u's bin, element-wise, floored at log 1e-12.

    Levels are 2/2^b apart. True bins have half-width h = 1/2^b and sum to one. The published form
    has h = 1/(2^b − 1) and a tanh for Φ; its bins overlap, so its probabilities sum to up to 2.
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


class DiffusionPrior(nn.Module):
    """T-step diffusion over u (B, C, d, d), with its bound, importance weights and sampler.

    parametrization: `x` (the net gives mean and log-variance of p(u_{t−1} | u_t)), `x_var` (mean
    alone) or `eps` (the noise). t_sample: how training draws t, `uniform` or `loss_aware`.
    model: a function of in_channels and out_channels that makes the net of (u_t, t, noise).
    """

    def __init__(
        self,
        site: LatentSite,
        model: Callable[..., nn.Module],
        T: int,
        beta_schedule: str,
        t_sample: str,
        parametrization: str,
    ):
        super().__init__()
        self.shape, self.bits, self.steps = (site.width, site.size, site.size), site.bits, T
        self.parametrization, self.t_sample = parametrization, t_sample
        out_channels = 2 * site.width if parametrization == "x" else site.width
        self.net = model(in_channels=site.width, out_channels=out_channels)
        for name, values in diffusion_constants(SCHEDULES[beta_schedule](T)).items():
            self.register_buffer(name, torch.from_numpy(values).float(), persistent=False)
        self.register_buffer("step_loss", torch.ones(T), persistent=t_sample == "loss_aware")
        self.register_buffer("seen", torch.zeros(2, T), persistent=False)  # see `settle`

    def forward(self, s: Tensor, noise: Noise) -> tuple["DiffusionDensity", None]:
        """As the prior of a top latent of the ladder (all elements active): p(z), no features."""
        active = torch.ones(self.shape, dtype=s.dtype, device=s.device)
        return DiffusionDensity(self, active, noise), None

    def noised(self, u: Tensor, t: Tensor) -> Gaussian:
        """q(u_t | u)."""
        mean = self._at(self.alphas_cumprod, t, u).sqrt() * u
        return Gaussian(mean, self._at(self.one_minus_alphas_cumprod, t, u).log().expand_as(u))

    def true_posterior(self, u: Tensor, u_t: Tensor, t: Tensor) -> Gaussian:
        """q(u_{t−1} | u_t, u) for t ≥ 1; at t = 0 its mean is u."""
        mean = self._at(self.posterior_mean_coef1, t, u) * u
        mean = mean + self._at(self.posterior_mean_coef2, t, u) * u_t
        return Gaussian(mean, self._at(self.posterior_log_variance, t, u).expand_as(u))

    def reverse(self, u_t: Tensor, t: Tensor, active: Tensor, noise: Noise) -> Gaussian:
        """p(u_{t−1} | u_t); at t = 0 the Gaussian behind p(u | u_0). Inactive inputs are zeroed."""
        out = at_least_float32(self.net((u_t * active).contiguous(), t, noise))
        if self.parametrization == "x":
            return Gaussian(*out.chunk(2, dim=1))
        if self.parametrization == "eps":
            alpha_bar = self._at(self.alphas_cumprod, t, u_t)
            out = (u_t - (1.0 - alpha_bar).sqrt() * out) / alpha_bar.sqrt()
            return self.true_posterior(out, u_t, t)
        return Gaussian(out, self._at(self.posterior_log_variance, t, u_t).expand_as(out))

    def decode(self, u: Tensor, p: Gaussian, published: bool = False) -> Tensor:
        """log p(u | u_0), per element: a discretised Gaussian, or a density where u has one."""
        if self.bits is None:
            return p.log_prob(u)
        return discretised_gaussian_log_prob(u, p, self.bits, published)

    def term(
        self, u: Tensor, t: Tensor, eps: Tensor, active: Tensor, noise: Noise, published=False
    ) -> Tensor:
        """Step t's term of the bound, per element, with u_t made from the standard noise eps.

        −KL(q(u_{t−1} | u_t, u) ‖ p(u_{t−1} | u_t)) for t ≥ 1, log p(u | u_0) for t = 0.
        """
        q = self.noised(u, t)
        u_t = q.mean + q.stddev * eps
        p = self.reverse(u_t, t, active, noise)
        kl = self.true_posterior(u, u_t, t).kl(p)
        first = (t == 0).view(-1, 1, 1, 1)
        return torch.where(first, self.decode(u, p, published), -kl) * active

    def terminal_kl(self, u: Tensor, active: Tensor) -> Tensor:
        """KL(q(u_{T−1} | u) ‖ N(0, I)), per element."""
        zero = torch.zeros_like(u)
        return self.noised(u, self._common(self.steps - 1)).kl(Gaussian(zero, zero)) * active

    def bound(self, u: Tensor, active: Tensor, noise: Noise, published: bool = False) -> Tensor:
        """A lower bound on log p(u), per element: all T terms, less the terminal KL.

        published: the published computation, with its wide bins and without the terminal KL.
        """
        total = torch.zeros_like(u) if published else -self.terminal_kl(u, active)
        for step in range(self.steps):
            t, eps = self._common(step), noise.normal_like(u)
            total = total + self.term(u, t, eps, active, noise, published)
        return total

    def training_bound(self, u: Tensor, active: Tensor, noise: Noise) -> Tensor:
        """An unbiased one-step estimate of `bound`: one t per image, over its probability."""
        law = self._step_law()
        drawn = noise.uniform(dtype=torch.float32)  # (B,)
        t = torch.bucketize(drawn, law.cumsum(0)[:-1], right=True)
        term = self.term(u, t, noise.normal_like(u), active, noise)
        if self.training and self.t_sample == "loss_aware":
            self._note(t, -sum_per_image(term.detach()))
        weight = (1.0 / law[t]).to(u.dtype).view(-1, 1, 1, 1)
        return weight * term - self.terminal_kl(u, active)

    def importance_weight(self, u: Tensor, active: Tensor, noise: Noise, num_paths: int) -> Tensor:
        """log of the mean over paths from q(u_0 … u_{T−1} | u) of p(u, path)/q(path | u): (B,).

        Each path's weight is unbiased for p(u): the log of their mean bounds log p(u) from below.
        """
        draws, u = noise.samples(0, num_paths), u.repeat(num_paths, 1, 1, 1)
        t = self._common(self.steps - 1)
        q, zero = self.noised(u, t), torch.zeros_like(u)
        u_t = q.sample(draws)
        weight = Gaussian(zero, zero).log_prob(u_t) - q.log_prob(u_t)
        for _ in range(self.steps - 1):
            p, q = self.reverse(u_t, t, active, draws), self.true_posterior(u, u_t, t)
            u_t = q.sample(draws)
            weight = weight + p.log_prob(u_t) - q.log_prob(u_t)
            t = t - 1
        weight = weight + self.decode(u, self.reverse(u_t, t, active, draws))
        log_w = sum_per_image(weight * active).view(num_paths, -1)
        return log_w.logsumexp(0) - math.log(num_paths)

    def sample(self, n: int, active: Tensor, noise: Noise, temperature: float = 1.0) -> Tensor:
        """Ancestral sampling from N(0, I), the mean at t = 0: (n, C, d, d), not quantised."""
        for u in self.sampling_path(n, active, noise, temperature):
            last = u  # the others are not kept: there may be a thousand
        return last

    def sampling_path(
        self, n: int, active: Tensor, noise: Noise, temperature: float = 1.0
    ) -> Iterator[Tensor]:
        """u_{T−1}, …, u_0 of ancestral sampling, then u: T + 1 tensors (n, C, d, d)."""
        start = noise.normal(*self.shape, dtype=active.dtype)
        u = math.sqrt(temperature) * start
        yield u
        for step in range(self.steps - 1, -1, -1):
            p = self.reverse(u, self._common(step), active, noise)
            u = p.mean if step == 0 else p.sample(noise, temperature)
            yield u

    def _step_law(self) -> Tensor:
        """The probability with which training draws each t: (T,) float32."""
        uniform = torch.full_like(self.step_loss, 1.0 / self.steps)
        if self.t_sample == "uniform":
            return uniform
        law = self.step_loss / self.step_loss.sum()
        return (1.0 - UNIFORM_SHARE) * law + UNIFORM_SHARE * uniform

    @torch.no_grad()
    def _note(self, t: Tensor, loss: Tensor) -> None:
        """How often each step was drawn, and the sum of |loss| there, since the last `settle`."""
        loss = loss.abs().to(self.seen.dtype)
        self.seen.index_add_(1, t, torch.stack([torch.ones_like(loss), loss]))

    @torch.no_grad()
    def settle(self, total: Callable[[Tensor], Tensor]) -> None:
        """After an optimiser step: move the running mean of |loss| towards that of the steps drawn.

        total: the sum over the processes that share the batch. Within the step the law stays, so
        that it is the same however the batch is divided.
        """
        if self.t_sample == "loss_aware":
            drawn, loss = total(self.seen)
            keep = LOSS_MEMORY ** (drawn > 0)
            self.step_loss.mul_(keep).add_((1.0 - keep) * loss / drawn.clamp(min=1.0))
            self.seen.zero_()

    def _common(self, step: int) -> Tensor:
        """The t (1,) of a step that all images are at."""
        return torch.full((1,), step, device=self.beta.device)

    def _at(self, values: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return values[t].to(like.dtype).view(-1, 1, 1, 1)


def diffusion_constants(beta: np.ndarray) -> dict[str, np.ndarray]:
    """β, ᾱ and the posterior's coefficients, (T,) float64, from β_0 … β_{T−1}.

    The posterior's variance at t = 0, where it is 0, is replaced by its value at t = 1.
    """
    alpha_bar = np.cumprod(1.0 - beta)
    before = np.append(1.0, alpha_bar[:-1])
    variance = beta * (1.0 - before) / (1.0 - alpha_bar)
    return {
        "beta": beta,
        "alphas_cumprod": alpha_bar,
        "one_minus_alphas_cumprod": 1.0 - alpha_bar,
        "posterior_mean_coef1": beta * np.sqrt(before) / (1.0 - alpha_bar),
        "posterior_mean_coef2": (1.0 - before) * np.sqrt(1.0 - beta) / (1.0 - alpha_bar),
        "posterior_log_variance": np.log(np.append(variance[1], variance[1:])),
    }


@dataclass(frozen=True)
class DiffusionDensity:
    """p(u) as a distribution: its log-density is a bound, its moments come from its own samples."""

    prior: DiffusionPrior
    active: Tensor
    noise: Noise

    def log_prob(self, u: Tensor) -> Tensor:
        """A lower bound on log p(u), per element as the bound's terms fall: (B, C, d, d)."""
        return self.prior.bound(u, self.active, self.noise)

    def kl_from(self, q: Gaussian | TwoPoint, u: Tensor) -> Tensor:
        """−H(q) − log p(u), per element, by the bound (in training, a one-step estimate of it)."""
        bound = self.prior.training_bound if self.prior.training else self.prior.bound
        return -q.entropy() * self.active - bound(u, self.active, self.noise)

    def published_kl_from(self, q: Gaussian | TwoPoint, u: Tensor) -> Tensor:
        """The published form of `kl_from`: its own terms, and the dither's entropy left out."""
        entropy = q.entropy() * self.active if isinstance(q, Gaussian) else 0.0
        return -entropy - self.prior.bound(u, self.active, self.noise, published=True)

    def importance_weight(self, u: Tensor, noise: Noise, num_paths: int) -> Tensor:
        """log of an unbiased estimate of p(u): (B,)."""
        return self.prior.importance_weight(u, self.active, noise, num_paths)

    def sample_n(self, n: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """n ancestral samples: (n, C, d, d)."""
        return self.prior.sample(n, self.active, noise, temperature)

    @property
    def mean(self) -> Tensor:
        """Mean over 256 samples of the prior: (C, d, d)."""
        return self._draws().mean(0)

    @property
    def stddev(self) -> Tensor:
        """Standard deviation over 256 samples of the prior: (C, d, d)."""
        return self._draws().std(0)

    @torch.no_grad()
    def _draws(self) -> Tensor:
        noise = Noise.keyed(torch.arange(MOMENT_SAMPLES, device=self.active.device), 0)
        return self.prior.sample(MOMENT_SAMPLES, self.active, noise)
