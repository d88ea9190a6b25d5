"""The diffusion prior p(u): u = noised once at t = 0, …, nearly pure noise at t = T − 1.

    p(u) = E over paths of p(u_{T−1}) Π_{t≥1} p(u_{t−1} | u_t) p(u | u_0)

Ho et al. 2020, with the discretised Gaussian at the last step; section 3 of arXiv 2302.09976.
Terms are per element, (B, C, d, d) in nats, so that constant elements can be left out.
A step t is (B,), or (1,) where all images are at the same one: the net then embeds it once.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.density import Density
from model.discretised_gaussian import discretised_gaussian_log_prob
from model.distributions import Gaussian, TwoPoint, sum_per_image
from model.layers import at_least_float32
from model.noise import Noise, NoisePurpose
from model.priors import LatentSite, Prior
from model.schedules import SCHEDULES, diffusion_constants

LOSS_MEMORY = 0.95  # decay of the running mean of each step's loss
UNIFORM_SHARE = 0.05  # of loss-aware draws of t, so that every step is drawn now and then
MOMENT_SAMPLES = 256  # behind the mean and standard deviation of p(u)


class DiffusionPrior(Prior):
    """T-step diffusion over u (B, C, d, d), with its bound, importance weights and sampler.

    parametrization: `x` (the net gives mean and log-variance of p(u_{t−1} | u_t)), `x_var` (mean
    alone) or `eps` (the noise). t_sample: how training draws t, `uniform` or `loss_aware`.
    model: a function of in_channels and out_channels that makes the net of (u_t, t, noise).
    """

    bounded = True
    uses_paths = True
    cpu_memory_format = torch.contiguous_format  # a fifth faster on so few positions

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
        # (draws, sum of |loss|) of each step since the last `after_optimizer_step`
        self.register_buffer("loss_sums", torch.zeros(2, T), persistent=False)

    @classmethod
    def check_arguments(cls, size: int, *, T: int, parametrization: str, **others: Any) -> None:
        """`eps` divides by √ᾱ, which is 0 at the end of two steps."""
        if parametrization == "eps" and T == 2:
            raise ValueError(
                "parametrization=eps divides by zero where T=2 ends in pure noise: use x."
            )

    def forward(self, s: Tensor, noise: Noise) -> tuple["DiffusionDensity", None]:
        """As the prior of a top latent of the ladder (all elements active): p(z), no features."""
        active = torch.ones(self.shape, dtype=s.dtype, device=s.device)
        return self.context_density(active, noise), None

    def context_density(self, active: Tensor, noise: Noise) -> "DiffusionDensity":
        """p(u) over the elements where `active` (C, d, d) is 1; the others are constant."""
        return DiffusionDensity(self, active, noise)

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
        probs = self.timestep_probs()
        drawn = noise.uniform(dtype=torch.float32)  # (B,)
        t = torch.bucketize(drawn, probs.cumsum(0)[:-1], right=True)
        term = self.term(u, t, noise.normal_like(u), active, noise)
        if self.training and self.t_sample == "loss_aware":
            self.record_losses(t, -sum_per_image(term.detach()))
        weight = (1.0 / probs[t]).to(u.dtype).view(-1, 1, 1, 1)
        return weight * term - self.terminal_kl(u, active)

    def importance_weight(self, u: Tensor, active: Tensor, noise: Noise, num_paths: int) -> Tensor:
        """log of the mean over paths from q(u_0 … u_{T−1} | u) of p(u, path)/q(path | u): (B,).

        Each path's weight is unbiased for p(u): the log of their mean bounds log p(u) from below.
        Paths have streams of their own, which no other draw from `noise` or its samples shares.
        """
        draws = noise.salted(NoisePurpose.PATHS).samples(0, num_paths)
        u = u.repeat(num_paths, 1, 1, 1)
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
        """Ancestral sampling from N(0, I): (n, C, d, d).

        The last draw is from the Gaussian behind p(u | u_0): of a discretised one, u is the level
        whose bin it falls in (`quantise`). The published sampler takes its mean instead.
        """
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
            u = p.sample(noise, temperature)
            yield u

    def timestep_probs(self) -> Tensor:
        """The probability with which training draws each t: (T,) float32."""
        uniform = torch.full_like(self.step_loss, 1.0 / self.steps)
        if self.t_sample == "uniform":
            return uniform
        by_loss = self.step_loss / self.step_loss.sum()
        return (1.0 - UNIFORM_SHARE) * by_loss + UNIFORM_SHARE * uniform

    @torch.no_grad()
    def record_losses(self, t: Tensor, loss: Tensor) -> None:
        """Add each image's step t (B,) and |loss| (B,) to `loss_sums`."""
        loss = loss.abs().to(self.loss_sums.dtype)
        self.loss_sums.index_add_(1, t, torch.stack([torch.ones_like(loss), loss]))

    @torch.no_grad()
    def after_optimizer_step(self, total: Callable[[Tensor], Tensor]) -> None:
        """Move the running mean of |loss| towards that of the steps drawn.

        Until then the probabilities stay as they are, so that they do not depend on how the batch
        is divided into micro-batches and among processes.
        """
        if self.t_sample == "loss_aware":
            drawn, loss = total(self.loss_sums)
            keep = LOSS_MEMORY ** (drawn > 0)
            self.step_loss.mul_(keep).add_((1.0 - keep) * loss / drawn.clamp(min=1.0))
            self.loss_sums.zero_()

    def _common(self, step: int) -> Tensor:
        """The t (1,) of a step that all images are at."""
        return torch.full((1,), step, device=self.beta.device)

    def _at(self, values: Tensor, t: Tensor, like: Tensor) -> Tensor:
        return values[t].to(like.dtype).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class DiffusionDensity(Density):
    """p(u) as a distribution: its log-density is a bound, its moments come from its own samples."""

    prior: DiffusionPrior
    active: Tensor
    noise: Noise

    def log_prob(self, u: Tensor) -> Tensor:
        """A lower bound on log p(u), split over the elements: (B, C, d, d)."""
        return self.prior.bound(u, self.active, self.noise)

    def kl_from(self, q: Gaussian | TwoPoint, u: Tensor) -> Tensor:
        """−H(q) − log p(u), per element, by the bound (in training, a one-step estimate of it)."""
        bound = self.prior.training_bound if self.prior.training else self.prior.bound
        return -q.entropy() * self.active - bound(u, self.active, self.noise)

    def published_kl_from(self, q: Gaussian | TwoPoint, u: Tensor) -> Tensor:
        """The published form of `kl_from`: its own terms, without the entropy of a discrete q."""
        entropy = q.entropy() * self.active if self.num_levels is None else 0.0
        return -entropy - self.prior.bound(u, self.active, self.noise, published=True)

    def log_weight(self, u: Tensor, noise: Noise, paths: int) -> Tensor:
        """log of an unbiased estimate of p(u): (B,)."""
        return self.prior.importance_weight(u, self.active, noise, paths)

    def sample_n(self, n: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """n ancestral samples: (n, C, d, d)."""
        return self.prior.sample(n, self.active, noise, temperature)

    def active_mask(self, u: Tensor) -> Tensor:
        """True where an element is not constant."""
        return self.active.expand_as(u) > 0

    @property
    def num_levels(self) -> int | None:
        """2^b, or None where u has a density."""
        return None if self.prior.bits is None else 2**self.prior.bits

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
