"""Noise is a function of its keys alone, and it is uniform, normal and independent."""

import pytest
import torch
from scipy import stats

from model.noise import Noise


def test_rows_do_not_depend_on_their_neighbours():
    ids = torch.arange(100)
    together = Noise.keyed(ids, 7, 3)
    first, second = together.normal(2, 3), together.uniform(5)
    alone = Noise.keyed(ids[40:41], 7, 3)
    assert torch.equal(alone.normal(2, 3)[0], first[40])
    assert torch.equal(alone.uniform(5)[0], second[40])


@pytest.mark.parametrize("salts", [(8, 3), (7, 4), (3, 7), (7,)])
def test_other_salts_give_other_numbers(salts):
    ids = torch.arange(50)
    assert not torch.isclose(
        Noise.keyed(ids, 7, 3).uniform(4), Noise.keyed(ids, *salts).uniform(4)
    ).any()


def test_samples_are_streams_of_their_own():
    noise = Noise.keyed(torch.arange(5), 1)
    all_at_once = noise.samples(0, 6).uniform(3).view(6, 5, 3)
    assert torch.equal(noise.samples(4, 2).uniform(3).view(2, 5, 3), all_at_once[4:])
    assert all_at_once.flatten().unique().numel() == 90


def test_fresh_follows_the_global_seed():
    torch.manual_seed(0)
    a = Noise.fresh(3).normal(4)
    torch.manual_seed(0)
    assert torch.equal(a, Noise.fresh(3).normal(4))
    assert not torch.equal(a, Noise.fresh(3).normal(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions(dtype):
    """Kolmogorov–Smirnov over draws, over rows (one draw per key), and over odd sizes."""
    noise = Noise.keyed(torch.arange(20_000), 5)
    for draws, law in (
        (noise.uniform(9, dtype=dtype), "uniform"),
        (noise.normal(3, 3, dtype=dtype), "norm"),
    ):
        assert draws.dtype == dtype
        draws = draws.flatten(1).double().numpy()
        for column in (0, 1, 8):
            assert stats.kstest(draws[:, column], law).pvalue > 1e-4
        assert stats.kstest(draws[:1000].ravel(), law).pvalue > 1e-4
        assert abs(stats.pearsonr(draws[:, 0], draws[:, 1]).statistic) < 0.03
        assert abs(stats.pearsonr(draws[:-1, 0], draws[1:, 0]).statistic) < 0.03


def test_uniform_stays_under_one_and_normal_finite():
    noise = Noise.keyed(torch.arange(1000), 0)
    assert noise.uniform(1000).max() < 1
    assert noise.normal(1000).isfinite().all()


def test_dropout_keeps_the_expectation():
    dropped = Noise.keyed(torch.arange(1000), 0).dropout(torch.ones(1000, 50), 0.2)
    assert set(dropped.unique().tolist()) == {0.0, 1.25}
    assert dropped.mean() == pytest.approx(1.0, abs=0.01)


def test_salted_streams_share_no_numbers_with_samples():
    noise = Noise.keyed(torch.arange(5), 1)
    streams = [noise, noise.salted(1), noise.salted(2), noise.salted(1).salted(1)]
    numbers = [stream.samples(0, 6).uniform(4).flatten() for stream in streams]
    numbers += [stream.uniform(4).flatten() for stream in streams]
    assert torch.cat(numbers).unique().numel() == 4 * (6 + 1) * 5 * 4
