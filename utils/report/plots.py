"""Plots of a report's figures per layer and per unit, and of a run's KL over the epochs."""

from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from utils.evaluation.collapse import (
    ACTIVE_THRESHOLD,
    DELTA,
    EPSILON,
    EPSILONS,
    THRESHOLDS,
    Z_95,
)
from utils.report import findings
from utils.report.content import LayerReport, ReportContent
from utils.report.drawing import INK, Drawing
from utils.report.panels import (
    ACCENT,
    SECOND,
    dots,
    grid,
    name_lines,
    panels,
    percent,
    series_style,
    small_multiples,
)

FLOOR = 1e-3  # nats: the foot of logarithmic axes
DECADES = 3  # of the KL maps' colours


def draw_kl(rows: Sequence[dict]) -> Drawing:
    """KL per layer over the epochs in metrics.jsonl's rows, without any that lack a layer's."""
    keys = sorted((k for k in rows[-1] if k.startswith("collapse/kl_")), key=_layer)
    rows = [row for row in rows if all(isinstance(row.get(key), (int, float)) for key in keys)]
    epochs = [row["epoch"] for row in rows]
    curves = [[row[key] for row in rows] for key in keys]

    def paint(axes: Axes) -> None:
        axes.set(xlabel="epoch", ylabel=f"KL (nats per image); under {FLOOR:g} at the foot")
        axes.set_yscale("log")
        ends = []
        for layer, values in enumerate(curves):
            style = series_style(layer)
            shown = [max(value, FLOOR) for value in values]
            axes.plot(epochs, shown, lw=1.2, ms=4, markevery=1 + len(epochs) // 8, **style)
            ends.append((epochs[-1], shown[-1], f"layer {layer}", style["color"]))
        axes.set_ylim(FLOOR, 2.0 * max(map(max, curves)) + FLOOR)
        axes.yaxis.set_major_formatter("{x:g}")
        grid(axes)
        name_lines(axes, ends)

    text = findings.epochs([values[-1] for values in curves], epochs[-1])
    height = max(4.0, 0.2 * len(keys))
    return panels("kl_per_layer", "KL per layer, validation set", text, paint, 1, height)


def draw_layers(content: ReportContent) -> Drawing:
    """KL per layer beside its share of active units, with 95 % intervals."""
    layers = content.layers
    collapsed = [layer.has_collapsed for layer in layers]

    def paint(left: Axes, right: Axes) -> None:
        margins = [(Z_95 * layer.kl_se,) * 2 for layer in layers]
        kl = [layer.kl for layer in layers]
        labels = [f"{value:.2f}" for value in kl]
        dots(left, kl, margins, labels, collapsed, {"color": ACCENT, "fmt": "o"})
        left.set_xlabel("KL (nats per image)")
        left.set_xlim(left=-0.02 * left.get_xlim()[1])
        shares = [layer.active / layer.units for layer in layers]
        margins = [
            ((layer.active - layer.active_low) / n, (layer.active_high - layer.active) / n)
            for layer, n in ((layer, layer.units) for layer in layers)
        ]
        labels = [f"{share:.0%}" for share in shares]
        dots(right, shares, margins, labels, collapsed, {"color": SECOND, "fmt": "s"})
        right.set_xlabel(f"active units (variance > {ACTIVE_THRESHOLD:g})")
        right.set_xlim(-0.03, 1.2)
        right.set_xticks([0, 0.25, 0.5, 0.75, 1])
        right.xaxis.set_major_formatter(percent())

    title = "KL and active units per layer, with 95 % intervals"
    height = 1.1 + 0.26 * len(layers)
    return panels("layers", title, findings.layers(content), paint, height=height)


def draw_active_curve(content: ReportContent) -> Drawing:
    """Share of units over each threshold: of every layer, with intervals, and of all units."""
    sizes = [layer.units for layer in content.layers]
    counts = torch.tensor([layer.active_by_threshold for layer in content.layers])  # (L, T, 3)
    everything = (counts[:, :, 0].sum(0) / sum(sizes)).tolist()

    def paint(figure: Figure, panel: list[Axes]) -> None:
        for axes, layer, count in zip(panel, content.layers, counts, strict=True):
            middle, low, high = (count / layer.units).T.tolist()
            axes.fill_between(THRESHOLDS, low, high, color=ACCENT, alpha=0.25, lw=0)
            _curve(axes, THRESHOLDS, middle, everything, ACTIVE_THRESHOLD)
            axes.set_title(f"layer {layer.name}: {layer.active / layer.units:.0%}", fontsize=8)
        figure.supxlabel("threshold on the variance of E[z | x] over x", fontsize=9)
        figure.supylabel("active units", fontsize=9)

    title = f"Active units by threshold; in the titles, at {ACTIVE_THRESHOLD:g} (dotted)"
    text = findings.active_curve(content)
    return small_multiples("active_units", title, text, paint, len(sizes))


def draw_collapse_curve(content: ReportContent) -> Drawing:
    """Share of (ε, δ)-collapsed units by ε: of every layer, and of all units."""
    sizes = [layer.units for layer in content.layers]
    counts = torch.tensor([layer.collapsed_by_epsilon for layer in content.layers])  # (L, E)
    everything = (counts.sum(0) / sum(sizes)).tolist()

    def paint(figure: Figure, panel: list[Axes]) -> None:
        for axes, layer, count in zip(panel, content.layers, counts, strict=True):
            shares = (count / layer.units).tolist()
            _curve(axes, EPSILONS, shares, everything, EPSILON)
            at_epsilon = shares[EPSILONS.index(EPSILON)]
            axes.set_title(f"layer {layer.name}: {at_epsilon:.0%}", fontsize=8)
        figure.supxlabel("ε (nats per unit)", fontsize=9)
        figure.supylabel("collapsed units", fontsize=9)

    title = (
        f"Units whose KL is under ε for at least {1 - DELTA:.0%} of the images; in the titles, at "
        f"ε = {EPSILON:g} (dotted)"
    )
    text = findings.collapse_curve(content)
    return small_multiples("collapsed_units", title, text, paint, len(sizes))


def _curve(
    axes: Axes, x: Sequence[float], own: Sequence[float], everything: Sequence[float], usual: float
) -> None:
    """A layer's shares, those of all units, and a line at the usual threshold."""
    axes.plot(x, everything, color=INK, ls="--", lw=0.8)
    axes.plot(x, own, color=ACCENT, lw=1.6)
    axes.axvline(usual, color=INK, ls=":", lw=1)
    axes.set_xscale("log")
    axes.set_xticks([10.0**k for k in (-4, -2, 0)])
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks([0, 0.5, 1])
    axes.yaxis.set_major_formatter(percent())
    axes.tick_params(labelsize=8)
    grid(axes)


def draw_kl_maps(content: ReportContent) -> Drawing:
    """KL of each position, summed over a layer's channels; all one scale, collapsed ones grey."""
    maps = {
        layer.layer: torch.tensor(layer.per_unit.kl).view(layer.shape).sum(0)
        for layer in content.layers
        if not layer.has_collapsed
    }
    largest = max((values.max().item() for values in maps.values()), default=0.0) or 1.0
    scale = LogNorm(largest / 10.0**DECADES, largest, clip=True)

    def paint(figure: Figure, panel: list[Axes]) -> None:
        image = None
        for axes, layer in zip(panel, content.layers, strict=True):
            axes.set_title(f"layer {layer.name}\n{layer.kl:.3g} nats", fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
            if layer.layer in maps:
                values = maps[layer.layer].clamp(min=scale.vmin).numpy()
                image = axes.imshow(values, cmap="cividis", norm=scale, interpolation="none")
            else:
                _grey(axes, layer)
        if image is not None:
            label = f"KL (nats per position); {scale.vmin:.1g} and less at the left"
            bar = figure.colorbar(
                image, ax=panel, orientation="horizontal", shrink=0.6, aspect=40, label=label
            )
            bar.ax.xaxis.set_major_formatter("{x:g}")
            bar.outline.set_visible(False)

    text = findings.kl_maps(content, {layer: values.tolist() for layer, values in maps.items()})
    title = "KL by position (mean over images, channels summed), one scale for all layers"
    return small_multiples("kl_maps", title, text, paint, len(content.layers), shared=False)


def _grey(axes: Axes, layer: LayerReport) -> None:
    _, height, width = layer.shape
    axes.set_aspect(height / width)
    axes.axhspan(0, 1, color="0.5", alpha=0.3, lw=0)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.text(0.5, 0.5, "collapsed", ha="center", va="center", fontsize=8, transform=axes.transAxes)


def _layer(key: str) -> int:
    return int(key.rpartition("_")[2])
