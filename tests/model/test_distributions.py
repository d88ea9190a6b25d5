"""Gaussians against torch.distributions; the dither's two points by enumeration."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from model.context import dither
from model.distributions import Gaussian, TwoPoint, log_softplus
from model.levels import level_value, quantise
from model.noise import Noise


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return [Gaussian(*torch.randn(2, 3, 4, dtype=torch.float64)) for _ in range(2)]


def test_gaussian_agrees_with_torch(pair):
    q, p = pair
    reference = [Normal(g.mean, g.stddev) for g in pair]
    z = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), reference[0].log_prob(z))
    torch.testing.assert_close(q.entropy(), reference[0].entropy())
    torch.testing.assert_close(q.kl(p), kl_divergence(*reference))
    torch.testing.assert_close(p.kl_from(q, z), q.kl(p))


def test_temperature_scales_the_variance():
    q = Gaussian(torch.full((4000, 5), 2.0), torch.full((4000, 5), -1.0))
    draws = q.sample(Noise.keyed(torch.arange(4000), 1), temperature=0.25)
    assert draws.mean() == pytest.approx(2.0, abs=0.01)
    assert draws.var() == pytest.approx(0.25 * q.variance[0, 0].item(), rel=0.05)
    assert torch.equal(q.sample(Noise.keyed(torch.arange(4000), 1), temperature=0), q.mean)


def test_log_softplus_is_exact_and_its_gradient_finite():
    raw = torch.tensor([-1e4, -20.0, 0.0, 3.0, 1e4], dtype=torch.float64, requires_grad=True)
    value = log_softplus(raw, 0.7)
    exact = torch.log(torch.log1p(torch.exp(0.7 * raw[1:4])) / 0.7)
    torch.testing.assert_close(value[1:4], exact)
    value.sum().backward()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_levels(bits):
    values = level_value(torch.arange(2**bits), bits)
    assert torch.equal(values, values.unique())  # in order, all different
    torch.testing.assert_close(values, -values.flip(0))
    assert torch.equal(quantise(values, bits), values)
    assert quantise(torch.tensor([-1.0, 1.0]), bits).tolist() == [values[0], values[-1]]


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_dither_by_enumeration(bits):
    """Probabilities of floor(r + e) clamped, e on a fine grid of (−0.25, 0.25), for every v."""
    v = torch.linspace(-1, 1, 301, dtype=torch.float64)
    e = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * 0.5 - 0.25
    r = (v + 1) / 2 * 2**bits
    levels = level_value((r[:, None] + e).floor(), bits)
    law = dither(v, bits)
    torch.testing.assert_close(law.mean, levels.mean(1), atol=1e-4, rtol=0)
    torch.testing.assert_close(law.variance, levels.var(1, correction=0), atol=1e-4, rtol=0)
    entropy = torch.zeros_like(v)
    for value in levels.unique():
        p = (levels == value).double().mean(1)
        entropy -= torch.xlogy(p, p)
        log_prob = law.log_prob(torch.full_like(v, value))
        torch.testing.assert_close(log_prob.exp(), p, atol=1e-4, rtol=0)
    torch.testing.assert_close(law.entropy(), entropy, atol=1e-3, rtol=0)
    assert law.entropy().max() <= torch.tensor(2.0).log() + 1e-12


def test_dither_samples_follow_the_law():
    v = torch.linspace(-1, 1, 41).expand(20_000, -1)
    law = dither(v, 2)
    draws = law.sample(Noise.keyed(torch.arange(20_000), 2))
    torch.testing.assert_close(draws.mean(0), law.mean[0], atol=0.01, rtol=0)
    assert law.log_prob(draws).isfinite().all()
    assert law.log_prob(torch.full_like(v, 0.123)).isneginf().all()


def test_one_point_is_certain():
    one = torch.zeros(3)
    law = TwoPoint(one, one, torch.zeros(3))
    assert torch.equal(law.log_prob(one), torch.zeros(3)) and torch.equal(law.entropy(), one)
