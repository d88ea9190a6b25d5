"""Scores of a model: what they are asked about goes by task.noise_seed, and by nothing else."""

import pytest
import torch

from datasets.loaders import EvaluationBatches
from tests.conftest import compose, randomised, shrunk
from utils.evaluation import scoring
from utils.processes.job import Job
from utils.processes.launch import Processes
from utils.report import collapse_report
from utils.settings.build import build_model
from utils.terminal import Terminal

IMAGES = torch.randint(0, 17, (8, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
BATCHES = EvaluationBatches(IMAGES, 16, 8)
BERNOULLI = [*shrunk("digits_dct_ladder"), "model.likelihood=bernoulli", "task.mi_images=4"]


@pytest.fixture(autouse=True)
def few_passes(monkeypatch):
    """Two posterior samples per image, where so few images would get two hundred."""
    monkeypatch.setattr(scoring, "posterior_samples_for", lambda images: 2)


@pytest.fixture(scope="module")
def model():
    """A small random model, whose targets are binarised at random."""
    torch.manual_seed(0)
    return randomised(build_model(compose("digits_dct_ladder", *BERNOULLI)), 0.05).eval()


def score(model, folder, seed, noise_seed):
    """(settings, score) of the model as one trained with this seed."""
    overrides = [f"train.seed={seed}", f"task.noise_seed={noise_seed}"]
    settings = compose("digits_dct_ladder", *BERNOULLI, *overrides)
    (folder / "best.pth").write_bytes(b"weights")
    path = folder / "best.pth"
    return settings, scoring.score(
        model, settings, BATCHES, "test", path, "digest", Terminal(False)
    )


def test_training_seeds_are_evaluated_on_the_same_targets(model, tmp_path):
    zero, one, other = (score(model, tmp_path, *seeds)[1] for seeds in ((0, 0), (1, 0), (0, 1)))
    assert (zero.record.seed, one.record.seed) == (0, 1)
    assert zero.record.conditions == one.record.conditions != other.record.conditions
    assert zero.record.likelihoods == one.record.likelihoods
    for name, values in zero.per_image.items():
        assert (values == one.per_image[name]).all(), name
        assert (values != other.per_image[name]).any(), name


def test_the_report_draws_from_the_same_seed(model, tmp_path, monkeypatch):
    used = []

    class Enough(Exception):
        pass

    def interventions(model, batches, seed, tick):
        used.append(seed)

    def aggregate_posterior(model, x, seed, tick, queries):
        used.append(seed)
        raise Enough

    for measure in (interventions, aggregate_posterior):
        monkeypatch.setattr(collapse_report, measure.__name__, measure)
    settings, found = score(model, tmp_path, 7, 3)
    job = Job(Processes(), torch.device("cpu"), Terminal(False))
    with pytest.raises(Enough):
        collapse_report.write_report(model, found, settings, BATCHES, tmp_path, job)
    assert used == [3, 3]
