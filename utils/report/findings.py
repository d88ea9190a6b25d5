"""What each plot shows, in a sentence made from its figures: the page's text alternatives."""

from collections.abc import Mapping, Sequence

from utils.evaluation.collapse import ACTIVE_THRESHOLD, EPSILON, EPSILONS
from utils.report.content import ReportContent, called


def layers(content: ReportContent) -> str:
    """Where the KL is, and which layers have collapsed."""
    largest = max(content.layers, key=lambda layer: layer.kl)
    collapsed = [called(layer) for layer in content.layers if layer.has_collapsed]
    return (
        f"Of {sum(content.bound.kl):.2f} nats of KL {called(largest)} has the most, "
        f"{largest.kl:.2f} ({largest.kl_share:.1%}). "
        + (f"Collapsed: {listed(collapsed)}." if collapsed else "No layer has collapsed.")
    )


def active_curve(content: ReportContent) -> str:
    """The share of active units at the usual threshold."""
    shares = {called(layer): layer.active / layer.units for layer in content.layers}
    return (
        f"At the threshold {ACTIVE_THRESHOLD:g}, {content.bound.active_units:.1%} of all units are "
        f"active{_from_to(shares)}."
    )


def collapse_curve(content: ReportContent) -> str:
    """The share of collapsed units at the usual ε."""
    index = EPSILONS.index(EPSILON)
    shares = {
        called(layer): layer.collapsed_by_epsilon[index] / layer.units for layer in content.layers
    }
    total = sum(layer.collapsed_by_epsilon[index] for layer in content.layers)
    everything = total / sum(layer.units for layer in content.layers)
    return (
        f"At ε = {EPSILON:g} nats, {everything:.1%} of all units have collapsed{_from_to(shares)}."
    )


def _from_to(shares: Mapping[str, float]) -> str:
    """The layers of the smallest and of the largest share."""
    least, most = min(shares, key=shares.get), max(shares, key=shares.get)
    if shares[least] == shares[most]:
        return ", in every layer alike"
    return f", from {shares[least]:.1%} ({least}) to {shares[most]:.1%} ({most})"


def kl_maps(content: ReportContent, maps: Mapping[int, Sequence[Sequence[float]]]) -> str:
    """Where the KL is largest; maps: rows of nats, for each layer that is drawn in colour."""
    if not maps:
        return "Every layer has collapsed."
    kl, layer, row, column = max(
        (kl, layer, row, column)
        for layer, rows in maps.items()
        for row, values in enumerate(rows)
        for column, kl in enumerate(values)
    )
    grey = [called(each) for each in content.layers if each.layer not in maps]
    return (
        f"The position of largest KL, {kl:.3f} nats, is row {row}, column {column} of "
        f"{called(content.layers[layer])}."
    ) + (f" Grey, because collapsed: {listed(grey)}." if grey else "")


def interventions(content: ReportContent) -> str:
    """How the bound improves with the top layers, and the layer that it needs most."""
    top, most = content.top_kept, max(content.layers, key=lambda layer: layer.without.lost)
    first = called(content.layers[0])
    return (
        f"−ELBO is {top[0].nelbo:.2f} nats with every layer from its prior, {top[1].nelbo:.2f} "
        f"with {first} from the image, and {top[-1].nelbo:.2f} with all. It rises most without "
        f"{called(most)}: by {most.without.lost:.2f} nats."
    )


def rate_distortion(content: ReportContent) -> str:
    """What all layers cost and bring, and the layer that brings most for each nat."""
    top = content.top_kept
    gains = [
        (before.reconstruction - after.reconstruction, after.rate - before.rate, layer)
        for before, after, layer in zip(top[:-1], top[1:], content.layers, strict=True)
    ]
    gain, cost, layer = max(gains, key=lambda entry: entry[0])
    return (
        f"For {top[-1].rate:.2f} nats of rate the distortion falls from "
        f"{top[0].reconstruction:.2f} to {top[-1].reconstruction:.2f} nats; {called(layer)} brings "
        f"most, {gain:.2f} for {cost:.2f} nats."
    )


def information(content: ReportContent) -> str:
    """How far the layers identify the image, and from which one on."""
    ceiling, last = content.information_ceiling, content.layers[-1].information.value
    reached = [layer for layer in content.layers if layer.saturated]
    if reached:
        return f"The images are all told apart from {called(reached[0])} on ({ceiling:.2f} nats)."
    return f"All layers together give {last:.2f} of the {ceiling:.2f} nats that tell all images."


def aggregates(content: ReportContent) -> str:
    """The layers whose aggregate posterior is nearest to and farthest from the prior."""
    overlaps = {
        called(layer): sum(map(min, layer.histogram.posterior, layer.histogram.prior))
        for layer in content.layers
    }
    return f"The aggregate posterior overlaps with the prior{_from_to(overlaps)}."


def comparison(kl: Mapping[str, Sequence[float]], active: Mapping[str, float]) -> str:
    """KL and active units of each group; kl: nats per layer from the top, active: shares."""
    total = {name: sum(values) for name, values in kl.items()}
    top = {name: values[0] for name, values in kl.items()}
    if len(kl) > 4:
        shares = {name: f"{share:.1%}" for name, share in active.items()}
        least, most = min(active, key=active.get), max(active, key=active.get)
        return (
            f"KL is {_range(total)}, in the top layer {_range(top)}; {shares[least]} ({least}) to "
            f"{shares[most]} ({most}) of the units are active."
        )
    parts = [
        f"{name}: {total[name]:.2f} nats of KL, {top[name]:.2f} in the top layer, "
        f"{active[name]:.1%} of the units active"
        for name in kl
    ]
    return "; ".join(parts) + "."


def _range(values: Mapping[str, float]) -> str:
    least, most = min(values, key=values.get), max(values, key=values.get)
    return f"{values[least]:.2f} ({least}) to {values[most]:.2f} nats ({most})"


def epochs(last: Sequence[float], epoch: int) -> str:
    """KL per layer at the end of the curves."""
    largest = max(range(len(last)), key=last.__getitem__)
    return (
        f"At epoch {epoch} layer {largest} has the largest KL, {last[largest]:.2f} of "
        f"{sum(last):.2f} nats."
    )


def listed(names: Sequence[str]) -> str:
    """“a, b and c”."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
