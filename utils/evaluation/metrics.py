"""Collapse metrics: one figure per latent layer, the standard ones and a user's own.

To add one, derive a class from `CollapseMetric` with a title, an explanation and `per_layer`.
Metrics are passed as a mapping from names to instances; the names appear in the score files and in
the tracker's keys.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from utils.errors import ConfigError
from utils.evaluation.collapse import Collapse


class CollapseMetric(ABC):
    """A figure of every latent layer, computed from a split's collapse statistics.

    title heads the column in tables; explanation says what the figure means and its unit.
    """

    title: str
    explanation: str

    @abstractmethod
    def per_layer(self, collapse: Collapse) -> list[float]:
        """One value per layer, from the top."""

    def text(self, value: float) -> str:
        """A value as it appears in tables."""
        return f"{value:.4g}"


Metrics = Mapping[str, CollapseMetric]


class Kl(CollapseMetric):
    """The KL of each layer in nats."""

    title = "KL (nats)"
    explanation = "mean over images"

    def per_layer(self, collapse: Collapse) -> list[float]:
        """E_x KL(q ‖ p) of each layer."""
        return collapse.kl.mean(0).tolist()


class ActiveUnits(CollapseMetric):
    """The share of units of each layer that are active beyond chance, as few samples tell it."""

    title = "active"
    explanation = "share of units whose marginal posterior mean varies over the images"

    def per_layer(self, collapse: Collapse) -> list[float]:
        """Units surely active over all units of each layer."""
        return [sure.double().mean().item() for sure in collapse.surely_active]


STANDARD: Metrics = {"kl": Kl(), "active_units": ActiveUnits()}  # logged in every epoch


def checked(own: Metrics) -> Metrics:
    """A user's own metrics.

    Raises:
        ConfigError: where one has a standard one's name.
    """
    taken = sorted(STANDARD.keys() & own.keys())
    if taken:
        raise ConfigError(
            f"metrics.{taken[0]} has the name of a metric that every run has: use another name."
        )
    return own


def layer_values(metrics: Metrics, collapse: Collapse) -> dict[str, list[float]]:
    """Every metric's values per layer, by name.

    Raises:
        ValueError: if a metric does not return one number per layer.
    """
    values, layers = {}, len(collapse.layers)
    for name, metric in metrics.items():
        values[name] = [float(value) for value in metric.per_layer(collapse)]
        if len(values[name]) != layers:
            raise ValueError(
                f"The collapse metric {name} returned {len(values[name])} value(s) for {layers} "
                "layers: return one per layer, from the top."
            )
    return values


def metric_values(metrics: Metrics, collapse: Collapse) -> dict[str, float]:
    """Every metric's values under the tracker's keys, `collapse/<name>_<layer>`, layer by layer."""
    values = layer_values(metrics, collapse)
    return {
        f"collapse/{name}_{layer}": values[name][layer]
        for layer in range(len(collapse.layers))
        for name in values
    }
