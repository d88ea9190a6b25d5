"""Plots of a report's figures: KL, active units, interventions, information."""

from collections.abc import Sequence

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, PercentFormatter

from utils.evaluation.collapse import (
    ACTIVE_THRESHOLD,
    DELTA,
    EPSILONS,
    THRESHOLDS,
    Z_95,
    LatentUnits,
)
from utils.evaluation.information import Aggregate
from utils.report.content import Ablation
from utils.report.drawing import INK, STYLE, Drawing, verbatim

ACCENT, SECOND = "#3b82c4", "#d9822b"


def draw_kl(rows: Sequence[dict]) -> Drawing:
    """KL per layer over the epochs in metrics.jsonl's rows."""
    keys = sorted((k for k in rows[-1] if k.startswith("collapse/kl_")), key=_layer)
    epochs = [row["epoch"] for row in rows]
    title = "KL per layer, validation set"
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(title, "epoch", "KL (nats per image)", (8, 4.5))
        marker = "o" if len(epochs) < 3 else None
        for key, colour in zip(keys, _colours(len(keys)), strict=True):
            values = [row[key] for row in rows]
            axes.plot(epochs, values, color=colour, marker=marker, label=f"layer {_layer(key)}")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(bottom=0)
        _legend(axes, len(keys))
    return Drawing("kl_per_layer", figure, title)


def draw_layers(
    kl: Sequence[float], kl_error: Sequence[float], active: Sequence[Sequence[float]]
) -> Drawing:
    """KL per layer beside its share of active units; active: per layer (share, low, high)."""
    layers = list(range(len(kl)))
    title = "KL and active units per layer (0 = top), with 95 % intervals"
    with matplotlib.rc_context(STYLE):
        figure = Figure((9, 0.9 + 0.28 * len(kl)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(layers, kl, xerr=kl_error, color=ACCENT, ecolor=INK, error_kw={"lw": 1})
        left.set(xlabel="KL (nats per image)", ylabel="layer")
        left.set_yticks(layers)
        left.invert_yaxis()
        shares, low, high = zip(*active, strict=True)
        margins = [[s - a for s, a in zip(shares, low, strict=True)]]
        margins.append([b - s for s, b in zip(shares, high, strict=True)])
        right.barh(layers, shares, xerr=margins, color=SECOND, ecolor=INK, error_kw={"lw": 1})
        right.set(xlabel=f"active units (variance > {ACTIVE_THRESHOLD:g})", xlim=(0, 1.02))
        right.xaxis.set_major_formatter(_percent())
        for axes in (left, right):
            axes.grid(axis="x")
            axes.set_axisbelow(True)
    return Drawing("layers", figure, title)


def draw_active_curve(layers: Sequence[LatentUnits]) -> Drawing:
    """Share of units over each threshold, per layer and of all units, with intervals."""
    title = "Active units by threshold, with 95 % intervals"
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(title, "threshold on the variance of E[z | x] over x", "active units")
        counts = torch.tensor(
            [[units.active(t) for t in THRESHOLDS] for units in layers]
        )  # (L, T, 3)
        sizes = torch.tensor([units.kl.numel() for units in layers])
        shares = [*(counts / sizes[:, None, None]), counts.sum(0) / sizes.sum()]
        colours = [*_colours(len(layers)), INK]
        labels = [*(f"layer {layer}" for layer in range(len(layers))), "all"]
        for share, colour, label in zip(shares, colours, labels, strict=True):
            middle, low, high = share.T.tolist()
            wide = label == "all"
            axes.plot(THRESHOLDS, middle, color=colour, label=label, lw=2 if wide else 1)
            axes.fill_between(THRESHOLDS, low, high, color=colour, alpha=0.15, lw=0)
        axes.axvline(ACTIVE_THRESHOLD, color=INK, ls=":", lw=1)
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(_percent())
        _legend(axes, len(layers) + 1)
    return Drawing("active_units", figure, title)


def draw_collapse_curve(layers: Sequence[LatentUnits]) -> Drawing:
    """Share of (ε, δ)-collapsed units by ε, per layer."""
    title = f"Units whose KL is under ε for at least {1 - DELTA:.0%} of the images"
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(title, "ε (nats per unit)", "collapsed units")
        for layer, (units, colour) in enumerate(zip(layers, _colours(len(layers)), strict=True)):
            shares = [units.collapsed(i) / units.kl.numel() for i in range(len(EPSILONS))]
            axes.plot(EPSILONS, shares, color=colour, label=f"layer {layer}")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(_percent())
        _legend(axes, len(layers))
    return Drawing("collapsed_units", figure, title)


def draw_interventions(top: Sequence[Ablation], without: Sequence[Ablation]) -> Drawing:
    """The bound by the number of top layers kept, and its loss without each layer."""
    title = "Layers drawn from their priors instead of inferred from the image"
    with matplotlib.rc_context(STYLE):
        figure = Figure((9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle(title, fontsize=10)
        kept = [ablation.kept for ablation in top]
        nelbo = [ablation.nelbo for ablation in top]
        left.plot(kept, nelbo, color=ACCENT, marker="o", label="−ELBO")
        left.plot(
            kept,
            [ablation.reconstruction for ablation in top],
            color=SECOND,
            marker="s",
            ls="--",
            label="reconstruction",
        )
        left.set(xlabel="top layers kept, the rest from the prior", ylabel="nats per image")
        left.set_xticks(kept[:: 1 + len(kept) // 20])
        left.legend()
        layers = list(range(len(without)))
        losses = [ablation.lost for ablation in without]
        errors = [Z_95 * ablation.lost_se for ablation in without]
        right.bar(layers, losses, yerr=errors, color=ACCENT, ecolor=INK, error_kw={"lw": 1})
        right.axhline(0, color=INK, lw=0.8)
        right.set(xlabel="layer replaced by its prior", ylabel="rise of −ELBO (nats per image)")
        right.set_yscale("symlog", linthresh=0.1)
        right.yaxis.set_major_formatter("{x:g}")
        right.set_xticks(layers[:: 1 + len(layers) // 20])
        for axes in (left, right):
            axes.grid(axis="y")
            axes.set_axisbelow(True)
    return Drawing("interventions", figure, title)


def draw_rate_distortion(top: Sequence[Ablation]) -> Drawing:
    """Distortion against rate as layers are added from the top; points are numbers of layers."""
    title = "Rate and distortion as layers are added from the top"
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(title, "rate: KL of the layers kept (nats)", "−log p(x | z) (nats)")
        rate, distortion = [row.rate for row in top], [row.reconstruction for row in top]
        axes.plot(rate, distortion, color=ACCENT, marker="o")
        for row in top:
            axes.annotate(
                str(row.kept),
                (row.rate, row.reconstruction),
                (4, 4),
                textcoords="offset points",
                fontsize=8,
                color=INK,
            )
    return Drawing("rate_distortion", figure, title)


def draw_information(aggregate: Aggregate, kl: Sequence[float]) -> Drawing:
    """Mutual information of the top layers and the image, with their cumulative KL."""
    title = f"Information about which of {aggregate.images} images it is"
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(title, "layers 0 … l", "nats")
        layers = list(range(len(kl)))
        means, errors = zip(*aggregate.information, strict=True)
        cumulative = torch.tensor(kl).cumsum(0).tolist()
        axes.plot(layers, cumulative, color=SECOND, marker="s", ls="--", label="KL, cumulative")
        axes.errorbar(
            layers,
            means,
            yerr=[1.96 * e for e in errors],
            color=ACCENT,
            ecolor=INK,
            marker="o",
            label="mutual information",
        )
        axes.axhline(aggregate.ceiling, color=INK, ls=":", lw=1, label="log N: all told apart")
        axes.set_ylim(bottom=0)
        axes.set_xticks(layers[:: 1 + len(layers) // 20])
        axes.legend()
    return Drawing("information", figure, title)


def draw_aggregates(aggregate: Aggregate) -> Drawing:
    """Histograms of each layer's aggregate posterior and of its prior."""
    title = "Aggregate posterior (bars) and prior (line); latents standardised by their priors"
    with matplotlib.rc_context(STYLE):
        figure, grid = small_grid(len(aggregate.histograms), title, 1.5)
        for layer, (axes, histogram) in enumerate(zip(grid, aggregate.histograms, strict=False)):
            edges = histogram.edges
            width = edges[1] - edges[0]
            density = [share / width for share in histogram.posterior]
            axes.stairs(density, edges, fill=True, color=ACCENT, alpha=0.7)
            axes.stairs([share / width for share in histogram.prior], edges, color=INK, lw=1)
            axes.set_title(f"layer {layer}", fontsize=8)
            axes.set_xlabel("(z − μ)/σ of the prior" if histogram.standardised else "u", fontsize=7)
            axes.set_yticks([])
            axes.tick_params(labelsize=7)
    return Drawing("aggregates", figure, title)


def draw_kl_maps(layers: Sequence[LatentUnits], context: bool) -> Drawing:
    """KL of each position, summed over a layer's channels."""
    title = "KL by position (nats, mean over images, channels summed)"
    with matplotlib.rc_context(STYLE):
        figure, grid = small_grid(len(layers), title, 1.7)
        for layer, (axes, units) in enumerate(zip(grid, layers, strict=False)):
            values = units.kl.view(units.shape).sum(0)
            image = axes.imshow(values.numpy(), cmap="viridis", vmin=0, interpolation="none")
            name = f"layer {layer}" + (" (context)" if context and layer == 0 else "")
            axes.set_title(name, fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
            bar = figure.colorbar(image, ax=axes, shrink=0.8)
            bar.ax.tick_params(labelsize=7)
            bar.outline.set_visible(False)
    return Drawing("kl_maps", figure, title)


def draw_comparison(kl: dict[str, Sequence[float]], curves: dict[str, Sequence[float]]) -> Drawing:
    """KL per layer of several models, beside their active units by threshold."""
    title = "KL per layer, and active units by threshold"
    with matplotlib.rc_context(STYLE):
        figure = Figure((9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        figure.suptitle(title, fontsize=10)
        width = 0.8 / len(kl)
        colours = matplotlib.colormaps["tab10"].colors
        bars = {}
        for index, (name, values) in enumerate(kl.items()):
            offset = width * (index - 0.5 * (len(kl) - 1))
            positions = [layer + offset for layer in range(len(values))]
            colour = colours[index % len(colours)]
            bars[verbatim(name)] = left.bar(positions, values, width, color=colour)
            right.plot(THRESHOLDS, curves[name], color=colour)
        left.set(xlabel="layer (0 = top)", ylabel="KL (nats per image)")
        left.set_xticks(range(max(map(len, kl.values()))))
        left.legend(bars.values(), bars)
        right.set(xlabel="threshold on the variance of E[z | x] over x", ylabel="active units")
        right.axvline(ACTIVE_THRESHOLD, color=INK, ls=":", lw=1)
        right.set_xscale("log")
        right.set_ylim(0, 1.02)
        right.yaxis.set_major_formatter(_percent())
        for axes in (left, right):
            axes.grid(axis="y")
            axes.set_axisbelow(True)
    return Drawing("comparison", figure, title)


def _axes(title: str, x: str, y: str, size: tuple[float, float] = (7, 3.6)) -> tuple[Figure, Axes]:
    figure = Figure(size, layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid()
    return figure, axes


def small_grid(count: int, title: str, side: float) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of small axes, the first `count` of them visible."""
    columns = min(count, 6)
    rows = -(-count // columns)
    figure = Figure((side * columns + 0.3, side * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, grid


def _colours(count: int) -> list:
    return list(matplotlib.colormaps["viridis"](torch.linspace(0.25, 0.88, count).tolist()))


def _legend(axes: Axes, entries: int) -> None:
    """A legend to the right of the plot, in as many columns as its entries need."""
    axes.legend(
        ncols=1 + entries // 11, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5)
    )


def _percent() -> Formatter:
    return PercentFormatter(1.0, 0)


def _layer(key: str) -> int:
    return int(key.rpartition("_")[2])
