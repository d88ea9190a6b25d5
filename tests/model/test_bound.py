"""`iwae` is a bound: it converges to the evidence, known exactly, and is never above it; the
published shortcuts, and one context for all samples, in its place one at a time, are caught by the
same test.

The toy has 2×2 binary images, a one-element context with 2 levels and 2 diffusion steps, and two
scalar latents: p(u) and p(x | u) are integrated by quadrature, and p(x) is their sum over both
levels, which the dither of a dark image reaches. (Where it does not reach every level, the estimate
converges to the sum over those that it does: a lower bound still.)
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.loaders import normalise
from model import estimators
from model.diffusion import DiffusionPrior
from model.distributions import Gaussian, sum_per_image
from model.estimators import PER_CONTEXT, PRIOR_PATHS
from model.layers import last_conv
from model.noise import Noise, NoisePurpose
from model.schedules import diffusion_constants
from tests.conftest import compose, randomised, shrunk
from tests.model.test_ladder_vae import TOY, TOY_CONTEXT, exact_evidence, toy
from utils.settings.build import build_model

SEEDS, MANY, VERY_MANY = 200, 1000, 10_000
LEVELS = [-0.5, 0.5]
BETAS = np.array([0.2, 0.3])  # leaves a terminal KL, which the schedules all but remove
GREY = torch.tensor([[-0.6, -0.9], [-0.9, -0.8]], dtype=torch.float64).view(1, 1, 2, 2)
ONE_BIT = [*TOY_CONTEXT, "model.decoder.z_L_bits=1"]  # r = 1.1: the dither reaches both levels


def path_weight(prior, u, active, noise, paths, wide=False, terminal=True):
    """A copy of DiffusionPrior.importance_weight for two steps, with two of the shortcuts."""
    draws, u = noise.salted(NoisePurpose.PATHS).samples(0, paths), u.repeat(paths, 1, 1, 1)
    t = torch.ones(len(u), dtype=torch.long)
    q, zero = prior.noised(u, t), torch.zeros_like(u)
    u_1 = q.sample(draws)
    weight = Gaussian(zero, zero).log_prob(u_1) - q.log_prob(u_1) if terminal else zero
    p, q = prior.reverse(u_1, t, active, draws), prior.true_posterior(u, u_1, t)
    u_0 = q.sample(draws)
    weight = weight + p.log_prob(u_0) - q.log_prob(u_0)
    weight = weight + prior.decode(u, prior.reverse(u_0, t * 0, active, draws), published=wide)
    return sum_per_image(weight * active).view(paths, -1).logsumexp(0) - math.log(paths)


def analytic(latent, noise, paths):
    """Analytic KLs inside the weights of the Gaussian latents."""
    if isinstance(latent.p, Gaussian):
        return -sum_per_image(latent.q.kl(latent.p))
    return original_weight(latent, noise, paths)


def without_dither(latent, noise, paths):
    """q(u | x) left out, as if the context were a point."""
    weight = original_weight(latent, noise, paths)
    if isinstance(latent.p, Gaussian):
        return weight
    return weight + sum_per_image(latent.q.log_prob(latent.z))


original_weight = estimators.log_weight
SHORTCUTS = {
    "none": lambda patch: patch.setattr(DiffusionPrior, "importance_weight", path_weight),
    "bins too wide": lambda patch: patch.setattr(
        DiffusionPrior, "importance_weight", lambda *a: path_weight(*a, wide=True)
    ),
    "terminal KL left out": lambda patch: patch.setattr(
        DiffusionPrior, "importance_weight", lambda *a: path_weight(*a, terminal=False)
    ),
    "analytic KLs": lambda patch: patch.setattr(estimators, "log_weight", analytic),
    "dither's entropy left out": lambda patch: patch.setattr(
        estimators, "log_weight", without_dither
    ),
    "one context for all samples": lambda patch: patch.setitem(OPTIONS, "per_context", VERY_MANY),
}
OPTIONS = {"max_rows": 4096, "paths": 16, "per_context": 2}


class Denoiser(torch.nn.Module):
    """Expects what it sees: where the path says something of u, p(u) lives from it."""

    def forward(self, u_t, t, noise):
        """Mean u_t, log-variance −2."""
        return torch.cat([u_t, torch.full_like(u_t, -2.0)], dim=1)


def near_prior(model):
    """The toy with posteriors near the priors, so that 1,000 weights are enough."""
    for block in model.decoder.blocks:
        for net in (block.posterior_net, block.prior.net):
            for parameter in last_conv(net).parameters():
                parameter.data.mul_(0.2)
    return model


@pytest.fixture(scope="module")
def model():
    """The toy with a context and a prior in which every shortcut makes a difference."""
    model = near_prior(toy("digits_dct_ladder", ONE_BIT))
    prior = model.decoder.context_prior
    prior.net = Denoiser()
    for name, values in diffusion_constants(BETAS).items():
        getattr(prior, name).copy_(torch.from_numpy(values))
    return model


@pytest.fixture(scope="module")
def exact(model) -> torch.Tensor:
    """log p(target) of each seed's binarisation: (SEEDS,)."""
    return evidence(model)


@torch.no_grad()
def evidence(model) -> torch.Tensor:
    """log p(target) of each seed's binarisation of GREY, summed over the context's levels."""
    x, noise = GREY.expand(SEEDS, -1, -1, -1), Noise.keyed(torch.arange(SEEDS), 1)
    target, found = model.likelihood.target(x, noise), {}
    if model.decoder.num_top:
        (context,) = model.decoder.infer_top(x, noise, 1.0)
        assert sorted(context.z.unique().tolist()) == LEVELS  # the dither was at work
    for image in target:
        key = tuple(image.flatten().tolist())
        if key not in found:
            found[key] = exact_evidence(model, image[None], levels=LEVELS)
    values = [found[tuple(image.flatten().tolist())] for image in target]
    return torch.tensor(values, dtype=torch.float64)


def gap(model, exact, k: int) -> tuple[float, float]:
    """Mean over seeds of estimate − exact value, and its standard error."""
    noise = Noise.keyed(torch.arange(SEEDS), 1)
    x = GREY.expand(SEEDS, -1, -1, -1)
    difference = model.estimate(x, k, "iwae", noise, **OPTIONS)[0] - exact
    return difference.mean().item(), difference.std().item() / math.sqrt(SEEDS)


def is_exact_in_the_limit(model, exact) -> bool:
    """The test that estimators must pass: never above by chance, and there with many samples."""
    for k in (1, 8, MANY):
        mean, error = gap(model, exact, k)
        if mean > 4 * error:
            return False
    return abs(mean) <= 4 * error + 0.01


def test_iwae_is_a_bound_and_converges(model, exact):
    assert is_exact_in_the_limit(model, exact)


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_every_published_shortcut_is_caught(model, exact, shortcut, monkeypatch):
    SHORTCUTS[shortcut](monkeypatch)
    assert is_exact_in_the_limit(model, exact) == (shortcut == "none")


@pytest.mark.slow
def test_the_gap_goes_on_closing(model, exact):
    """A standard error of 0.0045 nats here; with one context for all, the gap stays at 0.18."""
    mean, error = gap(model, exact, VERY_MANY)
    assert abs(mean) <= 4 * error < 0.02


@pytest.mark.parametrize(("paths", "per_context"), [(1, 1), (PRIOR_PATHS, PER_CONTEXT)])
def test_paths_and_sharing_leave_it_a_bound(model, exact, paths, per_context, monkeypatch):
    monkeypatch.setitem(OPTIONS, "paths", paths)
    monkeypatch.setitem(OPTIONS, "per_context", per_context)
    assert is_exact_in_the_limit(model, exact)


def test_the_plain_ladder_converges_too():
    model = near_prior(toy("digits_ladder", TOY))
    assert is_exact_in_the_limit(model, evidence(model))


@torch.no_grad()
def test_a_linear_gaussian_ladder_converges_to_its_closed_form():
    """Residual blocks and priors made constant: x = A z + b + noise, and p(x) is a Gaussian."""
    model = near_prior(toy("digits_ladder", [*TOY, "model.likelihood=gaussian"]))
    for block in model.decoder.blocks:
        for net in (last_conv(block.prior.net), *(last_conv(b.net) for b in block.blocks)):
            for parameter in net.parameters():
                parameter.zero_()
    head = model.decoder.head[-1]
    head.weight[1:].zero_()  # the pixels' raw variance: its bias alone

    def pixels(z):
        given = [z[:, i].view(-1, 1, 1, 1) for i in (0, 1)]
        latents, out = model.decoder.top_down(len(z), [], None, given, Noise.fresh(len(z)))
        return latents, model.px(out).density

    z = torch.tensor([[0, 0], [1, 0], [0, 1], [-2, 3]], dtype=torch.float64)
    latents, density = pixels(z)
    offset, first, second, other = density.mean.flatten(1)
    columns = torch.stack([first - offset, second - offset], 1)  # (4 pixels, 2 latents)
    torch.testing.assert_close(other, offset + columns @ z[3])
    assert columns.abs().min() > 0.01
    mean = torch.stack([latent.p.mean[0].flatten() for latent in latents]).flatten()
    variance = torch.stack([latent.p.variance[0].flatten() for latent in latents]).flatten()
    covariance = columns * variance @ columns.T + density.variance[0].flatten().diag()
    evidence = torch.distributions.MultivariateNormal(offset + columns @ mean, covariance)
    exact = evidence.log_prob(GREY.flatten()).expand(SEEDS)
    assert is_exact_in_the_limit(model, exact)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["delta", "fixed", "train", "conditional"])
def test_what_is_constant_in_the_data_costs_nothing(kind):
    """Symmetric images lack half of the frequencies; whatever q says of those cancels."""
    experiment = "digits_dct_ladder"
    overrides = [*shrunk(experiment), f"model.decoder.ctx_posterior_var={kind}"]
    overrides += ["model.ctx_size=4"]
    torch.manual_seed(0)
    model = randomised(build_model(compose(experiment, *overrides)), 0.05).eval()
    half = torch.randint(0, 17, (30, 1, 8, 4), generator=torch.Generator().manual_seed(1))
    images = torch.cat([half, half.flip(3)], 3).byte()
    model.fit_context(images, 16)
    context = model.decoder.context
    assert 0 < context.active.sum() < context.active.numel()
    x, noise = normalise(images, 16), Noise.keyed(torch.arange(30), 0)
    (latent,) = model.decoder.infer_top(x, noise, 1.0)
    other = torch.where(context.active > 0, latent.z, 0.7 * torch.ones_like(latent.z))
    weights = [
        estimators.log_weight(replace(latent, z=z), Noise.keyed(torch.arange(30), 1), 2)
        for z in (latent.z, other)
    ]
    if kind != "delta":  # whose q knows of no other level
        torch.testing.assert_close(*weights)
    nelbo = torch.stack([-model.log_likelihood(x, 1) for _ in range(20)]).mean()
    assert -model.log_likelihood(x, 64).mean() < nelbo
