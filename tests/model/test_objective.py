"""The loss is the sum of its parts; beta, free bits and units."""

import math

import pytest
import torch

from model.noise import Noise
from model.objective import BetaNelbo, BetaSchedule, bits_per_dim
from tests.conftest import compose, randomised, shrunk
from utils.settings.build import build_model


@pytest.fixture(params=["digits_dct_ladder", "digits_ladder"])
def output(request):
    """One pass of a small random model."""
    torch.manual_seed(0)
    model = randomised(build_model(compose(request.param, *shrunk(request.param))), 0.1)
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    return model(x, noise=Noise.keyed(torch.arange(5), 0))


def test_loss_is_the_sum_of_its_logged_parts(output):
    for beta in (0.0, 0.3, 1.0):
        parts = BetaNelbo()(output, beta)
        nats = (parts.reconstruction + beta * parts.kl.sum(1)).mean()
        assert parts.loss.item() == pytest.approx((nats / (64 * math.log(2))).item())
    torch.testing.assert_close(parts.nelbo, output.reconstruction + output.kl.sum(1))
    elements = torch.stack([latent.kl.flatten(1).sum(1) for latent in output.latents], 1)
    torch.testing.assert_close(parts.kl, elements)


def test_beta_warm_up():
    beta = BetaSchedule(0.1, 0.5, warmup=4)
    found = [beta(epoch) for epoch in (0, 1, 2, 4, 100)]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.5])
    assert BetaNelbo().beta(0) == 1.0


def test_free_bits_floor_every_gaussian_element_of_every_image(output):
    """Which is a higher floor than that of Kingma et al. (2016), under means over the batch."""
    plain, floored = BetaNelbo()(output, 1.0), BetaNelbo(free_bits_thr=8.0)(output, 1.0)
    expected, of_means = output.reconstruction.mean(), output.reconstruction.mean()
    for latent in output.latents:
        kl = latent.kl.flatten(1)
        floor = 8.0 / kl.shape[1] if hasattr(latent.p, "logvar") else -math.inf
        expected = expected + kl.clamp(min=floor).sum(1).mean()
        of_means = of_means + kl.mean(0).clamp(min=floor).sum()
    assert expected > of_means + 0.01
    assert floored.loss.item() == pytest.approx((expected / (64 * math.log(2))).item(), rel=1e-5)
    assert floored.loss > plain.loss
    assert torch.equal(floored.kl, plain.kl)  # what is logged stays the KL


def test_bits_per_dim():
    assert bits_per_dim(784 * math.log(2), 784) == pytest.approx(1.0)
