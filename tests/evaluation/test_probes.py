"""Probes: right where the answer is known, and left out where there is nothing to tell."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from model.latents import EncodedLayer, LatentAccess
from utils.evaluation import probes
from utils.evaluation.probes import probe

N = 200
LABELS = torch.arange(N) % 4
NOISE = torch.randn(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Known(LatentAccess):
    """A model whose layers say: nothing, the first bit of the class, the second bit, both."""

    latent_shapes = ((1, 1, 1),) * 4

    def latents(self, x, samples=1, temperature=1.0, noise=None):
        """x holds the class in its first pixel."""
        y = x[:, 0, 0, 0].round().long()
        jitter = 0.01 * x[:, 0, 1, 1]
        values = (jitter * 0 + 5.0, y // 2 + jitter, y % 2 + jitter, x[:, 0, 2, 2])
        return [EncodedLayer(v.view(-1, 1, 1, 1), v, v, v) for v in values]


def found(labels=LABELS, untrained=None):
    """Probes of images that say their class in one pixel."""
    x = NOISE.clone()
    x[:, 0, 0, 0] = LABELS
    return probe(Known(), untrained, x, labels, lambda done: None)


def test_layers_that_know_half_the_class_add_up():
    result = found(untrained=Known())
    assert (result.images, result.classes, result.chance.value) == (N, 4, 0.25)
    linear = [row.linear.value for row in result.alone]
    assert linear[0] == pytest.approx(0.25, abs=0.05)  # a constant
    assert linear[1] == pytest.approx(0.5, abs=0.1) and linear[2] == pytest.approx(0.5, abs=0.1)
    assert linear[3] < 0.4  # noise
    cumulated = [row.linear.value for row in result.cumulated]
    assert cumulated[0] == linear[0] and cumulated[2] > 0.97
    assert result.cumulated[2].neighbours.value > 0.97
    gains = result.gains
    assert gains[0] is None and gains[1].helps and gains[2].helps and not gains[3].helps
    assert gains[2].value == pytest.approx(cumulated[2] - cumulated[1])
    for row in (*result.alone, *result.cumulated):
        assert row.untrained == row.linear
    assert result.pixels.untrained is None


def test_intervals_are_wilsons():
    right = np.arange(100) < 83
    interval = binomtest(83, 100).proportion_ci(method="wilson")
    accuracy = probes._accuracy(right)
    assert (accuracy.low, accuracy.high) == pytest.approx((interval.low, interval.high), abs=1e-5)


def test_more_features_than_images_are_classified_as_they_are():
    """Rotated into the images' span: the same predictions as of all the features."""
    x = NOISE.new_empty(N, 300).normal_(generator=torch.Generator().manual_seed(1)).double()
    x[:, 0] += 4.0 * LABELS
    wide, y = x.numpy(), LABELS.numpy()
    scaled = (wide - wide.mean(0)) / wide.std(0)
    right = probes._linear([probes._standardised(wide)], y, probes._folds(y))
    folds = StratifiedKFold(probes.FOLDS, shuffle=True, random_state=0)
    direct = LogisticRegression(C=probes.PENALTY, max_iter=1000)
    wanted = cross_val_predict(direct, scaled / np.sqrt(300), y, cv=folds) == y
    assert (right == wanted).mean() > 0.98


def test_without_classes_there_is_a_reason_instead():
    assert found(labels=None) == "The data set has no labels."
    assert "two classes" in found(labels=LABELS * 0)
    rare = torch.where(torch.arange(N) < 3, 7, 0)
    assert "two classes" in found(labels=rare)
    few = torch.where(torch.arange(N) < 3, 7, LABELS)
    assert found(labels=few).images == N - 3
