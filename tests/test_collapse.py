"""Active units mean what they say: marginal over the layers above, whatever noise those have."""

from types import SimpleNamespace

import pytest
import torch

from model.distributions import Gaussian
from utils.collapse import ACTIVE_THRESHOLD, CollapseStatistics, passes_for

N = 4000


def output(means: list[torch.Tensor]) -> SimpleNamespace:
    """A posterior pass with these means (N, units) per layer, unit KL per element."""
    latents = [SimpleNamespace(q=Gaussian(m, torch.zeros_like(m))) for m in means]
    kl = torch.stack([torch.full((len(m),), float(m.shape[1])) for m in means], 1)
    return SimpleNamespace(latents=latents, kl=kl, reconstruction=torch.arange(len(kl)).float())


def report(make, batches=4):
    """Statistics of as many passes as N images need, added in batches."""
    torch.manual_seed(0)
    x = torch.randn(N, 1)
    statistics = CollapseStatistics()
    for part in x.chunk(batches):
        statistics.update([output(make(part)) for _ in range(passes_for(N))])
    return statistics.report()


@pytest.mark.parametrize("live", [0, 1, 3, 7])
def test_k_live_units_report_k(live):
    def make(x):
        mean = torch.zeros(len(x), 7)
        mean[:, :live] = 0.3 * x  # variance 0.09
        return [mean]

    found = report(make)
    assert found.active == [live] and found.elements == [7]
    assert found.active_units == pytest.approx(live / 7)


def test_a_collapsed_child_of_a_noisy_parent_is_not_active():
    """Its mean copies the parent's sample, noise of variance 1 that says nothing about x."""

    def make(x):
        parent = torch.zeros(len(x), 5) + torch.randn(len(x), 5)
        return [torch.zeros(len(x), 5), parent]

    assert report(make).active == [0, 0]


def test_an_active_child_is_found_under_the_noise():
    def make(x):
        return [x.expand(-1, 5) + torch.randn(len(x), 5)]

    assert report(make).active == [5]


def test_means_shares_and_errors():
    found = report(lambda x: [torch.zeros(len(x), 1), torch.zeros(len(x), 3)])
    assert found.images == N
    assert found.kl == pytest.approx([1, 3]) and found.kl_share == pytest.approx([0.25, 0.75])
    assert found.nelbo == pytest.approx(found.reconstruction + 4)
    per_image = torch.arange(N // 4).double()
    assert found.nelbo_se == pytest.approx(per_image.std().item() / N**0.5, rel=1e-3)


def test_the_order_and_size_of_batches_do_not_matter():
    def make(x):
        return [x.expand(-1, 4) * torch.tensor([0.0, 0.05, 0.2, 1.0])]

    one, many = report(make, 1), report(make, 400)
    assert one.active == many.active == [2] and one.kl == many.kl


def test_two_passes_estimate_a_covariance_and_passes_keep_chance_away():
    torch.manual_seed(1)
    first, second = torch.randn(2, 50, 3) + torch.randn(50, 1)
    statistics = CollapseStatistics()
    statistics.update([output([first]), output([second])])
    expected = [torch.cov(torch.stack([first[:, j], second[:, j]]))[0, 1] for j in range(3)]
    torch.testing.assert_close(
        statistics.variances()[0], torch.stack(expected).double(), atol=0.05, rtol=0
    )
    for images in (200, 5_000, 10_000, 10**7):
        m = passes_for(images)
        assert m >= 2 and (2 / (images * m * (m - 1))) ** 0.5 <= ACTIVE_THRESHOLD / 4
