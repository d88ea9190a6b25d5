"""The prior: schedules, the normalised last step, unbiased training, and p(u) by quadrature."""

import itertools
import math
from functools import partial

import pytest
import torch
from scipy.stats import norm

from model.diffusion import DiffusionPrior
from model.discretised_gaussian import discretised_gaussian_log_prob
from model.distributions import Gaussian, sum_per_image
from model.levels import level_value, quantise
from model.noise import Noise
from model.priors import LatentSite
from model.schedules import cosine_betas, diffusion_constants, linear_betas
from model.unet import UNet, timestep_embedding
from tests.conftest import randomised

ACTIVE = torch.ones(1, 1, 1, dtype=torch.float64)


def tiny_prior(bits=2, size=1, T=2, dropout=0.0, **changes) -> DiffusionPrior:
    """A float64 prior over (1, size, size) with random weights."""
    torch.manual_seed(0)
    unet = partial(
        UNet,
        model_channels=16,
        num_res_blocks=1,
        channel_mult=[1],
        num_heads=2,
        dropout=dropout,
    )
    settings = {"T": T, "beta_schedule": "linear", "t_sample": "uniform", "parametrization": "x"}
    site = LatentSite(1, size, bits, 16, None, None)
    prior = DiffusionPrior(site, unet, **{**settings, **changes})
    return randomised(prior, 0.1).double().eval()


@torch.no_grad()
def exact_log_prob(prior: DiffusionPrior, u: torch.Tensor, points: int = 201) -> torch.Tensor:
    """log p(u) of a one-element, two-step prior by quadrature over (u_0, u_1): u (N,) -> (N,)."""
    grid = torch.linspace(-7, 7, points, dtype=torch.float64)
    cell = grid[1] - grid[0]
    column = grid.view(-1, 1, 1, 1)
    t = torch.ones(points, dtype=torch.long)
    noise = Noise.keyed(torch.arange(points), 0)
    one = prior.reverse(column, t, ACTIVE, noise)
    start = torch.from_numpy(norm.pdf(grid.numpy()))  # p(u_1)
    step = Gaussian(one.mean.flatten(), one.logvar.flatten())
    u_0 = (step.log_prob(grid[:, None]).exp() * start).sum(1) * cell  # p(u_0) on the grid
    last = prior.reverse(column, t * 0, ACTIVE, noise)
    decoded = Gaussian(last.mean.flatten(), last.logvar.flatten())
    values = [(prior.decode(value, decoded).exp() * u_0).sum() * cell for value in u]
    return torch.stack(values).log()


def test_schedules():
    for steps, first, last in (
        (7, 1 / 7, 2 / 7),
        (5, 0.2, 0.4),
        (40, 0.025, 0.5),
        (1000, 1e-3, 0.02),
    ):
        beta = linear_betas(steps)
        assert len(beta) == steps
        assert beta[[0, -1]] == pytest.approx([first, last])
    cosine = cosine_betas(40)
    assert (cosine > 0).all() and cosine.max() == 0.999 and (cosine[1:] >= cosine[:-1]).all()


@pytest.mark.parametrize("schedule", [linear_betas, cosine_betas])
def test_posterior_is_bayes_rule(schedule):
    """q(u_{t−1} | u_t, u) ∝ q(u_t | u_{t−1}) q(u_{t−1} | u), the product of two Gaussians."""
    c = diffusion_constants(schedule(8))
    t, u, u_t = 5, 0.3, -0.7
    beta, before = c["beta"][t], c["alphas_cumprod"][t - 1]
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = (math.sqrt(1 - beta) * u_t / beta + math.sqrt(before) * u / (1 - before)) / precision
    found = c["posterior_mean_coef1"][t] * u + c["posterior_mean_coef2"][t] * u_t
    assert found == pytest.approx(mean)
    assert math.exp(c["posterior_log_variance"][t]) == pytest.approx(1 / precision)
    assert c["posterior_log_variance"][0] == c["posterior_log_variance"][1]
    assert (c["posterior_mean_coef1"][0], c["posterior_mean_coef2"][0]) == pytest.approx((1, 0))


@pytest.mark.parametrize("bits", [1, 2, 5])
@pytest.mark.parametrize("logvar", [-12.0, -6.0, 0.0, 4.0])
def test_true_bins_sum_to_one_and_published_ones_do_not(bits, logvar):
    levels = level_value(torch.arange(2**bits), bits).double()
    p = Gaussian(torch.tensor(0.1), torch.tensor(logvar, dtype=torch.float64))
    true = discretised_gaussian_log_prob(levels, p, bits, published=False).exp().sum()
    assert true == pytest.approx(1.0, abs=1e-9)
    published = discretised_gaussian_log_prob(levels, p, bits, published=True).exp().sum()
    assert published > 1.0 - 1e-3
    if (bits, logvar) == (2, -6.0):
        p = Gaussian(torch.tensor(0.0), p.logvar)  # on a boundary, both neighbours' bins hold it
        assert discretised_gaussian_log_prob(levels, p, 2, True).exp().sum() > 1.8


def test_tails_are_exact_in_float32():
    p = Gaussian(torch.tensor(0.0), torch.tensor(0.0))
    for u in (0.75, -0.75):
        for shift in (3.0, 6.0):
            found = discretised_gaussian_log_prob(
                torch.tensor(u / 3), Gaussian(p.mean - shift, p.logvar), 2, False
            )
            low, high = u / 3 - 0.25 + shift, u / 3 + 0.25 + shift
            assert found.item() == pytest.approx(math.log(norm.sf(low) - norm.sf(high)), rel=1e-3)


def test_evidence_sums_to_one_over_the_levels():
    prior = tiny_prior()
    levels = level_value(torch.arange(4), 2).double()
    assert exact_log_prob(prior, levels).exp().sum() == pytest.approx(1.0, abs=1e-6)


def test_importance_weight_bounds_and_converges():
    prior = tiny_prior()
    levels = level_value(torch.arange(4), 2).double()
    exact = exact_log_prob(prior, levels)
    repeats = 120
    u = levels.repeat_interleave(repeats).view(-1, 1, 1, 1)
    noise = Noise.keyed(torch.arange(len(u)), 1)
    with torch.no_grad():
        bound = sum_per_image(prior.bound(u, ACTIVE, noise)).view(4, repeats).mean(1)
        means = [bound]
        for paths in (1, 4, 200):
            weights = prior.importance_weight(u, ACTIVE, noise, paths).view(4, repeats)
            error = weights.std(1) / math.sqrt(repeats)
            assert (weights.mean(1) <= exact + 4 * error).all()
            means.append(weights.mean(1))
    for less, more in itertools.pairwise(means[1:]):
        assert (less <= more + 4 * error).all()
    torch.testing.assert_close(means[0], means[1], atol=0.2, rtol=0)  # both estimate the ELBO
    assert ((means[-1] - exact).abs() <= 0.02 + 3 * error).all() and (error < 0.03).all()


@pytest.mark.parametrize("t_sample", ["uniform", "loss_aware"])
def test_training_estimates_the_bound(t_sample):
    prior = tiny_prior(T=4, t_sample=t_sample)
    prior.step_loss.copy_(torch.tensor([1.0, 5.0, 0.2, 2.0]))
    n = 20_000
    u = level_value(torch.arange(n) % 4, 2).double().view(-1, 1, 1, 1)
    with torch.no_grad():
        one_step = prior.training_bound(u, ACTIVE, Noise.keyed(torch.arange(n), 1)).flatten()
        all_steps = prior.bound(u, ACTIVE, Noise.keyed(torch.arange(n), 2)).flatten()
    error = math.hypot(one_step.std() / n**0.5, all_steps.std() / n**0.5)
    assert one_step.mean().item() == pytest.approx(all_steps.mean().item(), abs=4 * error)


def test_loss_aware_remembers_the_losses_and_is_saved():
    prior = tiny_prior(T=3, t_sample="loss_aware").train()
    before = prior.step_loss.clone()
    u = torch.full((300, 1, 1, 1), 0.25, dtype=torch.float64)
    prior.training_bound(u, ACTIVE, Noise.keyed(torch.arange(300), 0))
    assert torch.equal(prior.step_loss, before)  # until the step is done
    prior.after_optimizer_step(lambda sums: sums)
    assert (prior.step_loss != before).all() and not prior.loss_sums.any()
    assert "step_loss" in prior.state_dict()
    probs = prior.timestep_probs()
    assert probs.sum() == pytest.approx(1.0) and probs.min() > 0.01
    assert "step_loss" not in tiny_prior().state_dict()


@pytest.mark.parametrize("parametrization", ["x", "x_var", "eps"])
@pytest.mark.parametrize("bits", [2, None])
def test_parametrizations(parametrization, bits):
    prior = tiny_prior(bits=bits, size=3, T=5, parametrization=parametrization)
    active = torch.ones(1, 3, 3, dtype=torch.float64)
    u = level_value(torch.randint(0, 4, (6, 1, 3, 3)), 2).double()
    assert prior.bound(u, active, Noise.fresh(6)).isfinite().all()
    draws = [prior.sample(5, active, Noise.fresh(5), t) for t in (1.0, 0.0, 0.0)]
    assert draws[0].shape == (5, 1, 3, 3)
    torch.testing.assert_close(draws[1], draws[2])


def test_perfect_noise_prediction_has_no_kl():
    """With eps equal to the noise, p(u_{t−1} | u_t) is the true posterior: every KL is 0."""
    prior = tiny_prior(T=5, size=2, parametrization="eps")
    u = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    eps = torch.randn_like(u)
    prior.net.forward = lambda u_t, t, noise: eps
    for step in range(1, 5):
        t = torch.full((4,), step)
        term = prior.term(u, t, eps, torch.ones(1, 2, 2), Noise.fresh(4))
        torch.testing.assert_close(term, torch.zeros_like(term), atol=1e-5, rtol=0)


@pytest.mark.parametrize("parametrization", ["x", "x_var", "eps"])
def test_a_step_common_to_all_images_is_the_step_of_each(parametrization):
    prior = tiny_prior(T=3, size=2, parametrization=parametrization)
    u = level_value(torch.randint(0, 4, (5, 1, 2, 2)), 2).double()
    eps, active, noise = torch.randn_like(u), torch.ones(1, 2, 2), Noise.fresh(5)
    for step in range(3):
        common, each = (
            prior.term(u, torch.full((count,), step), eps, active, noise) for count in (1, 5)
        )
        torch.testing.assert_close(common, each)


def test_inactive_elements_cost_nothing_and_say_nothing():
    prior = tiny_prior(size=3, T=3)
    active = torch.ones(1, 3, 3, dtype=torch.float64)
    active[0, 2] = 0
    u = level_value(torch.randint(0, 4, (5, 1, 3, 3)), 2).double()
    other = torch.where(active > 0, u, -u)
    values = [prior.bound(v, active, Noise.keyed(torch.arange(5), 0)) for v in (u, other)]
    assert torch.equal(*values) and (values[0][:, :, 2] == 0).all()
    weights = [
        prior.importance_weight(v, active, Noise.keyed(torch.arange(5), 0), 3) for v in (u, other)
    ]
    assert torch.equal(*weights)


def test_dropout_is_on_in_training_only_and_follows_the_noise():
    prior = tiny_prior(size=3, dropout=0.5)
    u, t = torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.zeros(2, dtype=torch.long)

    def out(seed):
        return prior.net(u, t, Noise.keyed(torch.arange(2), seed))

    assert torch.equal(out(1), out(2))
    prior.train()
    assert torch.equal(out(1), out(1)) and not torch.equal(out(1), out(2))


def test_timestep_embedding():
    found = timestep_embedding(torch.tensor([3]), 4, torch.float32)[0]
    expected = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]
    assert found.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("channel_mult", [[1], [1, 2], [1, 2, 2]])
def test_unet_keeps_the_shape_on_every_level_layout(channel_mult):
    net = UNet(3, 6, 16, 2, channel_mult, 2, 0.0)
    u = torch.randn(2, 3, 8, 8)
    assert net(u, torch.tensor([0, 3]), Noise.fresh(2)).shape == (2, 6, 8, 8)


def test_samples_have_the_probability_that_the_density_gives_them():
    """Drawn at t = 0 too; its mean in place of the draw, as the published sampler has it, fails."""
    prior, n = tiny_prior(), 40_000
    levels = level_value(torch.arange(4), 2).double()
    exact = exact_log_prob(prior, levels).exp()
    with torch.no_grad():
        u = quantise(prior.sample(n, ACTIVE, Noise.keyed(torch.arange(n), 4)), 2).flatten()
    shares = (u[:, None] == levels).double().mean(0)
    assert ((shares - exact).abs() < 4 * (exact * (1 - exact) / n).sqrt()).all()
