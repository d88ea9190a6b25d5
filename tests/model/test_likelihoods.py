"""Probabilities over the levels sum to one; samplers follow them; temperature is honoured."""

import pytest
import torch

from model.distributions import LOG_2PI
from model.likelihoods import LIKELIHOODS, Bernoulli, discretised_logistic_log_prob
from model.noise import Noise

LEVELS = torch.linspace(-1, 1, 256, dtype=torch.float64)


def head(name: str, batch: int, channels: int, scale: float = 3.0, levels: int = 256):
    """A random head output on a single pixel and its distribution."""
    torch.manual_seed(1)
    size = LIKELIHOODS[name].head_channels(channels, num_mix=3)
    raw = scale * torch.randn(batch, size, 1, 1, dtype=torch.float64)
    return LIKELIHOODS[name].from_head(raw, channels, levels)


def repeat(px, count: int):
    """The same single-image distribution `count` times."""
    fields = vars(px).values()
    return type(px)(
        *(f[:1].expand(count, *f.shape[1:]) if isinstance(f, torch.Tensor) else f for f in fields)
    )


@pytest.mark.parametrize("name", ["logistic", "logistic_mixture"])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_sum_to_one(name, scale, levels):
    px = repeat(head(name, 1, 1, scale, levels), levels)
    grid = torch.linspace(-1, 1, levels, dtype=torch.float64)
    log_prob = px.log_prob(grid.view(-1, 1, 1, 1))
    assert log_prob.exp().sum() == pytest.approx(1.0, abs=1e-9)


def test_mixture_over_two_channels_sums_to_one():
    """Mixture weights are shared by the channels: the sum runs over all pairs of levels."""
    pairs = torch.cartesian_prod(LEVELS, LEVELS)
    px = repeat(head("logistic_mixture", 1, 2), len(pairs))
    assert px.log_prob(pairs.view(-1, 2, 1, 1)).exp().sum() == pytest.approx(1.0, abs=1e-9)


def test_bernoulli_sums_to_one_and_takes_grey_targets_in_expectation():
    px = repeat(head("bernoulli", 1, 1), 2)
    both = px.log_prob(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))
    assert both.exp().sum() == pytest.approx(1.0)
    grey = px.log_prob(torch.full((2, 1, 1, 1), 0.5, dtype=torch.float64))[0]
    assert grey == pytest.approx((0.25 * both[0] + 0.75 * both[1]).item())


def test_gaussian_integrates_to_one():
    x = torch.linspace(-40, 40, 200_001, dtype=torch.float64)
    px = repeat(head("gaussian", 1, 1, scale=1.0), len(x))
    mass = px.log_density(x.view(-1, 1, 1, 1)).exp().sum() * (x[1] - x[0])
    assert mass == pytest.approx(1.0, abs=1e-6)
    assert px.density.log_prob(px.means)[0] == pytest.approx(
        (-0.5 * (LOG_2PI + px.density.logvar[0])).item()
    )


def test_logistic_is_stable_where_the_sigmoids_differ_by_nothing():
    x = torch.zeros(1, 1, requires_grad=True)
    value = discretised_logistic_log_prob(x, torch.full((1, 1), 0.9), torch.full((1, 1), 8e-4))
    assert value.item() == pytest.approx(-0.9 / 8e-4, rel=0.01)  # float32 sigmoids give log 0 here
    value.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_samples_follow_the_probabilities(name):
    count = 40_000
    px = repeat(head(name, 1, 1, scale=1.0), count)
    draws = px.sample(noise=Noise.keyed(torch.arange(count), 0)).flatten()
    assert draws.abs().max() <= 1
    if name == "bernoulli":
        assert (draws > 0).double().mean() == pytest.approx(px.probs[0].item(), abs=0.01)
    elif name == "gaussian":
        inside = px.density.mean[0].item()
        assert (draws < inside).double().mean() == pytest.approx(0.5, abs=0.02)
    else:
        law = repeat(px, 256).log_prob(LEVELS.view(-1, 1, 1, 1)).exp()
        found = (draws[:, None] <= LEVELS + 1e-9).double().mean(0)
        torch.testing.assert_close(found, law.cumsum(0), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_temperature_zero_is_deterministic_and_less_is_narrower(name):
    px = head(name, 500, 3, scale=0.5)
    zero = [px.sample(0.0, Noise.keyed(torch.arange(500), seed)) for seed in (1, 2)]
    assert torch.equal(*zero)
    if name != "bernoulli":
        spread = [
            (px.sample(t, Noise.keyed(torch.arange(500), 3)) - px.mean).std() for t in (0.05, 1.0)
        ]
        assert spread[0] < spread[1]


def test_dynamic_binarisation():
    x = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]).view(1, 1, 1, 5).expand(20_000, -1, -1, -1)
    target = Bernoulli.target(x, Noise.keyed(torch.arange(20_000), 4))
    assert set(target.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(target.mean(0), x[0], atol=0.03, rtol=0)
    fixed = Bernoulli.target(x[:1], Noise.fresh(1), temperature=0)
    assert fixed.flatten().tolist() == [-1, -1, -1, 1, 1]
