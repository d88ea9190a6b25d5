"""The models that come with the project load by name, and give their stored figures."""

import json

import numpy as np
import pytest
from omegaconf import OmegaConf

from datasets.loaders import EvaluationBatches
from model.estimators import named
from tests.conftest import ROOT, SHARED
from utils.checkpoint import load, locate
from utils.evaluation.bound import estimate_nll
from utils.evaluation.compared_runs import cached_run
from utils.settings.check import check_task
from utils.settings.composition import compose
from utils.settings.images import load_images

IMAGES = 50
NAMES = sorted(path.name for path in (ROOT / "pretrained").iterdir() if path.is_dir())


def test_their_scores_are_compared_without_images(tmp_path):
    """The README's command."""
    composed = compose([f"runs={[f'pretrained/{name}' for name in NAMES]}", "task=compare"])
    task = check_task(OmegaConf.to_container(composed.task))
    for name in NAMES:
        found = cached_run(f"pretrained/{name}", task, str(tmp_path), ())
        assert found is not None and found.record.name == name


@pytest.mark.parametrize("name", NAMES)
def test_fifty_images_have_their_stored_likelihoods(name, tmp_path, monkeypatch):
    """From any folder, without a network; rounding differs between machines."""
    monkeypatch.chdir(tmp_path)
    place = f"dataset.root={SHARED / 'data'}"
    overrides = [] if name.startswith("digits") else [place, "dataset.download=false"]
    if overrides and not (SHARED / "data").is_dir():
        pytest.skip(f"no images in {SHARED} (set LADDER_VAE_SHARED)")
    path = locate(f"pretrained/{name}")
    model, settings = load(path, overrides, "cpu", ())
    stored = json.loads((path.parent / "results.json").read_text())["likelihoods"][0]
    arrays = np.load(path.parent / "results.npz")
    splits = load_images(settings)
    batches = EvaluationBatches(splits.test[:IMAGES], splits.max_value, IMAGES)
    how = (stored["num_samples"], stored["prior_samples"] or 1, stored.get("per_context") or 1)
    _, nll = estimate_nll(model, batches, named(stored["estimator"]), *how, 0, lambda done: None)
    assert nll.numpy() == pytest.approx(arrays[f"nll_{stored['estimator']}"][:IMAGES], abs=0.02)
    assert arrays[f"nll_{stored['estimator']}"].mean() == pytest.approx(stored["nll"], abs=1e-3)
