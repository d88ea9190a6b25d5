"""Probes: how well simple classifiers tell the images' classes by the layers' posterior means.

Of each layer alone and of all layers down to it, against pixels, the same layers of an untrained
model, and chance (always the most frequent class). A layer's features are its posterior means given
the means above it, standardised; a set of features is scaled to one unit of variance, so that sets
of any size meet the same penalty. Predictions are those of cross-validation, so that every image is
classified once by a probe that has not seen its label; intervals are 95 %, over images (Wilson's).

Linear: logistic regression with an L2 penalty. Nearest neighbours: a majority of the five nearest.
Both depend on inner products alone, so that more features than images are rotated into their span.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from model import LadderVAE
from model.latents import LatentAccess
from utils.evaluation.collapse import Z_95
from utils.settings.build import build_model
from utils.settings.schema import Settings

FOLDS, NEIGHBOURS, PENALTY = 5, 5, 10.0  # PENALTY is scikit-learn's C: larger is weaker
ITERATIONS = 30  # of L-BFGS: with 100, a trained MNIST model's accuracies differ by 0.8 points
AT_ONCE = 100  # images encoded


class Accuracy(BaseModel, frozen=True):
    """A share of images told right, with its 95 % interval."""

    value: float
    low: float
    high: float


class ProbeRow(BaseModel, frozen=True):
    """Both probes of one set of features, and the linear one of the untrained model's."""

    linear: Accuracy
    neighbours: Accuracy
    untrained: Accuracy | None = None


class Gain(BaseModel, frozen=True):
    """What a layer adds to the linear accuracy of those above it, paired over images; its error."""

    value: float
    se: float

    @property
    def helps(self) -> bool:
        """Whether it adds beyond chance."""
        return self.value > Z_95 * self.se


class Probes(BaseModel, frozen=True):
    """All of them; lists are per layer from the top."""

    images: int
    classes: int
    chance: Accuracy
    pixels: ProbeRow
    alone: list[ProbeRow]
    cumulated: list[ProbeRow]  # the layer and those above it
    gains: list[Gain | None]  # None for the top layer


def probe(
    model: LatentAccess,
    untrained: LatentAccess | None,
    x: Tensor,
    labels: Tensor | None,
    tick: Callable[[int], None],
) -> Probes | str:
    """The probes of images x (N, C, H, W) with class numbers (N,), or why there are none.

    Classes with fewer images than there are folds are left out.
    """
    if labels is None:
        return "The data set has no labels."
    y = labels.numpy()
    enough = np.bincount(y)[y] >= FOLDS
    x, y = x[torch.from_numpy(enough).to(x.device)], y[enough]
    if len(np.unique(y)) < 2:
        return f"Fewer than two classes have {FOLDS} images or more."
    folds = _folds(y)
    sets = [*posterior_means(model, x), x.flatten(1).double().cpu().numpy()]
    *layers, pixels = map(_standardised, sets)
    others = [_standardised(z) for z in posterior_means(untrained, x)] if untrained else []
    alone, cumulated, gains, above = [], [], [], None
    for layer in range(len(layers)):
        alone.append(_row(layers[layer : layer + 1], others[layer : layer + 1], y, folds))
        right, row = _linear(layers[: layer + 1], y, folds), alone[0]
        if layer:
            row = _row(layers[: layer + 1], others[: layer + 1], y, folds, right)
        cumulated.append(row)
        gains.append(None if above is None else _gain(right, above))
        above = right
        tick(1)
    return Probes(
        images=len(y),
        classes=len(np.unique(y)),
        chance=_accuracy(y == np.bincount(y).argmax()),
        pixels=_row([pixels], [], y, folds),
        alone=alone,
        cumulated=cumulated,
        gains=gains,
    )


@torch.no_grad()
def posterior_means(model: LatentAccess, x: Tensor) -> list[np.ndarray]:
    """Of each layer from the top, given the means above it: (N, elements) float64."""
    parts = [model.latents(part, temperature=0.0) for part in x.split(AT_ONCE)]
    return [
        torch.cat([part[layer].mean.flatten(1).double().cpu() for part in parts]).numpy()
        for layer in range(len(parts[0]))
    ]


def untrained_like(model: LadderVAE, settings: Settings) -> LadderVAE:
    """A model of the same settings with fresh weights; its context is fitted as the model's."""
    with torch.random.fork_rng([]):
        torch.manual_seed(settings.train.seed)
        other = build_model(settings)
    if model.has_context:
        other.decoder.context.load_state_dict(model.decoder.context.state_dict())
    return other.to_device(model.device).eval()


def _standardised(features: np.ndarray) -> np.ndarray:
    """Each element to mean 0 and variance 1; constant ones left out; at most N columns."""
    deviation = features.std(0)
    varies = deviation > 1e-9 * (1.0 + np.abs(features).max(0, initial=0.0))
    scaled = (features[:, varies] - features[:, varies].mean(0)) / deviation[varies]
    return _rotated(scaled)


def _rotated(features: np.ndarray) -> np.ndarray:
    """Features (N, D) with the same inner products in no more than N columns."""
    if features.shape[1] <= len(features):
        return features
    values, vectors = np.linalg.eigh(features @ features.T)
    return vectors * np.sqrt(values.clip(min=0.0))


def _joined(sets: Sequence[np.ndarray]) -> np.ndarray:
    """Several sets as one of unit variance; a single zero where nothing varies."""
    features = np.concatenate(sets, 1)
    if features.shape[1] == 0:
        return np.zeros((len(features), 1))
    return _rotated(features) / math.sqrt(features.var(0).sum())


def _folds(y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedKFold  # not at every start

    return list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(y, y))


def _predictions(
    classifier, features: np.ndarray, y: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Which images are told right by a probe that was fitted without them: (N,) bool."""
    right = np.empty(len(y), bool)
    for seen, held in folds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged: the accuracy has
            classifier.fit(features[seen], y[seen])
        right[held] = classifier.predict(features[held]) == y[held]
    return right


def _linear(sets: Sequence[np.ndarray], y: np.ndarray, folds: Sequence) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=PENALTY, max_iter=ITERATIONS)
    return _predictions(classifier, _joined(sets), y, folds)


def _row(
    sets: Sequence[np.ndarray],
    untrained: Sequence[np.ndarray],
    y: np.ndarray,
    folds: Sequence,
    linear: np.ndarray | None = None,
) -> ProbeRow:
    from sklearn.neighbors import KNeighborsClassifier

    linear = _linear(sets, y, folds) if linear is None else linear
    nearest = KNeighborsClassifier(NEIGHBOURS, algorithm="brute")
    return ProbeRow(
        linear=_accuracy(linear),
        neighbours=_accuracy(_predictions(nearest, _joined(sets), y, folds)),
        untrained=_accuracy(_linear(untrained, y, folds)) if untrained else None,
    )


def _accuracy(right: np.ndarray) -> Accuracy:
    """With Wilson's interval."""
    n, share, z2 = len(right), float(right.mean()), Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    margin = Z_95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Accuracy(value=share, low=max(middle - margin, 0.0), high=min(middle + margin, 1.0))


def _gain(right: np.ndarray, above: np.ndarray) -> Gain:
    difference = right.astype(float) - above
    return Gain(value=difference.mean(), se=difference.std(ddof=1) / math.sqrt(len(right)))
