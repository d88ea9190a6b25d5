"""Whole-split figures do not depend on how the images are cut into batches."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from datasets.loaders import EvaluationBatches
from tests.conftest import compose, randomised, shrunk
from utils.evaluation import bound as bounds
from utils.evaluation.bound import estimate_nll, posterior_collapse
from utils.settings.build import build_model

IMAGES = torch.randint(0, 17, (23, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture(scope="module")
def model():
    """A small random model."""
    torch.manual_seed(0)
    return randomised(build_model(compose("digits_dct_ladder", *shrunk("digits_dct_ladder"))), 0.05)


def bound(model, size=23, seed=3, tick=lambda n: None):
    """The report over IMAGES, four passes each."""
    return posterior_collapse(model, EvaluationBatches(IMAGES, 16, size), seed, 4, tick).report()


def test_posterior_collapse(model):
    ticks = []
    found = [bound(model, size, tick=ticks.append) for size in (23, 5)]
    assert sum(ticks) == 46 and not model.training
    assert found[0].images == 23 and found[0].posterior_samples == 4
    assert found[0].kl == pytest.approx(found[1].kl, rel=1e-5)
    assert found[0].nelbo == pytest.approx(found[1].nelbo, rel=1e-6)
    assert found[0].active == found[1].active
    other = bound(model, seed=4)
    assert other.nelbo != found[0].nelbo
    assert other.nelbo == pytest.approx(found[0].nelbo, rel=0.01)


@pytest.mark.parametrize("estimator", ["iwae", "published"])
def test_estimated_nll(model, estimator):
    found = [
        estimate_nll(model, EvaluationBatches(IMAGES, 16, n), estimator, 5, 2, 3, 0, lambda n: None)
        for n in (23, 7)
    ]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-5, atol=0)
    found = [averages for averages, _ in found]
    assert found[0].nll == pytest.approx(found[1].nll, rel=1e-6)
    assert found[0].nll_se == pytest.approx(found[1].nll_se, rel=1e-3)
    assert (found[0].estimator, found[0].num_samples, found[0].images) == (estimator, 5, 23)
    sampling = (found[0].prior_samples, found[0].per_context)
    assert sampling == ((2, 3) if estimator == "iwae" else (None, None))


def test_more_samples_are_a_tighter_bound(model):
    one, many = (
        estimate_nll(model, EvaluationBatches(IMAGES, 16, 23), "iwae", k, 2, 1, 0, lambda n: None)[
            0
        ].nll
        for k in (1, 30)
    )
    assert many < one and many < bound(model, seed=0).nelbo


def test_memory_kept_for_reuse_is_free(model, monkeypatch):
    """The system's file cache, and the blocks that PyTorch's allocator keeps on a GPU."""
    memory = SimpleNamespace(free=10**6, available=9 * 10**6)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    rows = bounds.rows_that_fit(model, torch.zeros(1, 1, 8, 8))
    memory.available = memory.free
    assert 0 <= rows - 9 * bounds.rows_that_fit(model, torch.zeros(1, 1, 8, 8)) < 9
    on_gpu = {"mem_get_info": (1000, 80_000), "memory_reserved": 70_000, "memory_allocated": 8000}
    for name, value in on_gpu.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert bounds._free_memory(torch.device("cuda", 0)) == 1000 + 70_000 - 8000
