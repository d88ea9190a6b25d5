"""Active units are marginal over the layers above, whatever noise those have."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from model.distributions import Gaussian
from utils.evaluation.collapse import (
    ACTIVE_THRESHOLD,
    EPSILON,
    EPSILONS,
    Collapse,
    CollapseStatistics,
    posterior_samples_for,
)
from utils.evaluation.metrics import STANDARD, metric_values

N = 4000


def output(means: list[torch.Tensor], kls: list[torch.Tensor] | None = None) -> SimpleNamespace:
    """A posterior sample with these means (N, units) per layer; KL per element: one by default."""
    kls = kls or [torch.ones_like(m) for m in means]
    latents = [
        SimpleNamespace(q=Gaussian(m, torch.zeros_like(m)), kl=kl)
        for m, kl in zip(means, kls, strict=True)
    ]
    kl = torch.stack([kl.sum(1) for kl in kls], 1)
    return SimpleNamespace(latents=latents, kl=kl, reconstruction=torch.arange(len(kl)).float())


def collapse(make, batches=4, images=N, seed=0, samples=None) -> Collapse:
    """Statistics of as many samples as the images need, added in batches, last batch first."""
    torch.manual_seed(seed)
    x = torch.randn(images, 1)
    statistics = CollapseStatistics(images)
    parts = list(zip(torch.arange(images).chunk(batches), x.chunk(batches), strict=True))
    for ids, part in reversed(parts):
        made = [output(make(part)) for _ in range(samples or posterior_samples_for(images))]
        statistics.update(ids, made)
    return statistics.finish()


def report(make, batches=4):
    """The report on `collapse`."""
    return collapse(make, batches).report()


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
    assert found.kl_se == [0, 0]


def test_the_order_and_size_of_batches_do_not_matter():
    def make(x):
        return [x.expand(-1, 4) * torch.tensor([0.0, 0.05, 0.2, 1.0])]

    one, many = report(make, 1), report(make, 400)
    assert one.active == many.active == [2] and one.kl == many.kl


def test_two_samples_estimate_a_covariance_and_more_keep_chance_away():
    torch.manual_seed(1)
    first, second = torch.randn(2, 50, 3) + torch.randn(50, 1)
    statistics = CollapseStatistics(50)
    statistics.update(torch.arange(50), [output([first]), output([second])])
    (units,) = statistics.finish().layers
    expected = [torch.cov(torch.stack([first[:, j], second[:, j]]))[0, 1] for j in range(3)]
    torch.testing.assert_close(units.variance, torch.stack(expected).double(), atol=0.05, rtol=0)
    for images in (200, 5_000, 10_000, 10**7):
        m = posterior_samples_for(images)
        assert m >= 2 and (2 / (images * m * (m - 1))) ** 0.5 <= ACTIVE_THRESHOLD / 4


def test_every_image_keeps_its_own_figures_and_place():
    found = collapse(lambda x: [x.expand(-1, 2)], batches=1)
    assert found.reconstruction.tolist() == list(range(N)) and found.kl.shape == (N, 1)
    assert found.nelbo.tolist() == [r + 2 for r in range(N)]


def test_errors_of_the_variances_are_what_they_vary_by():
    """A barely varying unit, an active one, a collapsed child of a noisy parent; 300 data sets."""

    def make(x):
        scales = torch.tensor([0.02, 0.3, 0.0])
        noise = torch.tensor([0.0, 0.1, 1.0]) * torch.randn(len(x), 3)
        return [x * scales + noise]

    found = [collapse(make, 1, 200, seed, samples=8).layers[0] for seed in range(300)]
    variances = torch.stack([units.variance for units in found])
    errors = torch.stack([units.variance_se for units in found])
    torch.testing.assert_close(errors.mean(0), variances.std(0), rtol=0.12, atol=0)
    bias = (variances.mean(0) - torch.tensor([0.02**2, 0.09, 0.0])) / variances.std(0)
    assert bias.abs().max() < 4 / 300**0.5


def test_intervals_of_the_count_hold_it():
    """Units around the threshold, 100 data sets: the true count lies within."""
    scales = torch.linspace(0.05, 0.15, 40)
    true = int((scales.square() > ACTIVE_THRESHOLD).sum())

    def make(x):
        return [x * scales + 0.1 * torch.randn(len(x), 40)]

    counts = [collapse(make, 1, 300, seed, samples=4).layers[0].active() for seed in range(100)]
    assert all(low <= count <= high for count, low, high in counts)
    assert sum(low <= true <= high for _, low, high in counts) >= 95
    assert any(low < high for _, low, high in counts)


@pytest.mark.parametrize("images", [200, 5000])
def test_no_collapsed_unit_is_active_by_chance_in_two_samples(images):
    """Of 400 children of noisy parents, as an epoch's validation sees them; live ones are found."""

    def make(x):
        noise = torch.randn(len(x), 400)
        return [noise, torch.cat([0.3 * x, 1.2 * x + 0.5 * noise[:, :1], noise[:, :98]], 1)]

    for seed in range(5):
        found = collapse(make, images // 100, images, seed, samples=2)
        assert found.report().active[0] > 50
        assert [int(sure.sum()) for sure in found.surely_active] == [0, 2]
        assert found.surely_active_units == 2 / 500
        values = metric_values(STANDARD, found)
        assert values["collapse/active_units_0"] == 0 and values["collapse/active_units_1"] == 0.02
        assert list(found.log_variances()) == [1] and len(found.log_variances()[1]) == 2


def test_a_higher_threshold_leaves_fewer_units():
    (units,) = collapse(lambda x: [x * torch.tensor([0.05, 0.2, 1.0])]).layers
    assert [units.active(t)[0] for t in (0.001, 0.01, 0.1, 10.0)] == [3, 2, 1, 0]


def test_units_are_collapsed_by_their_share_of_images_below_epsilon():
    """KL under ε = 0.01 for all, for 99.5 %, for 98 % and for none of the images."""
    kl = torch.full((1000, 4), 0.001)
    kl[:5, 1] = kl[:20, 2] = 1.0
    kl[:, 3] = 0.02
    statistics = CollapseStatistics(1000)
    samples = [output([torch.zeros(1000, 4)], [kl]), output([torch.zeros(1000, 4)], [kl])]
    statistics.update(torch.arange(1000), samples)
    found = statistics.finish()
    (units,) = found.layers
    at = EPSILONS.index(EPSILON)
    assert units.share_below_epsilon[at].tolist() == pytest.approx([1, 0.995, 0.98, 0])
    assert found.report().collapsed == [2]
    assert units.collapsed(at, delta=0.05) == 3
    assert [units.collapsed(i) for i in (0, len(EPSILONS) - 1)] == [0, 4]
    assert units.kl.tolist() == pytest.approx(kl.double().mean(0).tolist())


def test_one_sample_is_held_at_a_time():
    """All samples of a batch of a wide model together would fill the memory."""
    made = []

    def samples():
        for _ in range(5):
            assert sum(one() is not None for one in made) <= 1
            one = output([torch.randn(20, 3)])
            made.append(weakref.ref(one.kl))
            yield one

    statistics = CollapseStatistics(20)
    statistics.update(torch.arange(20), samples())
    assert len(made) == statistics.posterior_samples == 5
