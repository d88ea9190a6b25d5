"""Plots of what the layers are good for: ablation, information, aggregate posteriors."""

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.evaluation.collapse import Z_95
from utils.report import findings
from utils.report.content import ReportContent
from utils.report.drawing import INK, Drawing
from utils.report.panels import ACCENT, SECOND, dots, grid, name_lines, panels, small_multiples
from utils.table import signed


def draw_interventions(content: ReportContent) -> Drawing:
    """The bound by the number of top layers kept, and its loss without each layer."""
    top, layers = content.top_kept, content.layers

    def paint(left: Axes, right: Axes) -> None:
        kept = [row.kept for row in top]
        nelbo, reconstruction = [r.nelbo for r in top], [r.reconstruction for r in top]
        left.plot(kept, nelbo, color=ACCENT, marker="o")
        left.plot(kept, reconstruction, color=SECOND, marker="s", ls="--")
        left.set(xlabel="top layers kept, the rest from their priors", ylabel="nats per image")
        left.set_xticks(kept[:: 1 + len(kept) // 20])
        grid(left)
        left.set_ylim(left.get_ylim())
        ends = [(kept[-1], nelbo[-1], "−ELBO", ACCENT)]
        name_lines(left, [*ends, (kept[-1], reconstruction[-1], "recon-\nstruction", SECOND)])
        lost = [layer.without.lost for layer in layers]
        margins = [(Z_95 * layer.without.lost_se,) * 2 for layer in layers]
        labels = [signed(value).text for value in lost]
        collapsed = [layer.has_collapsed for layer in layers]
        dots(right, lost, margins, labels, collapsed, {"color": ACCENT, "fmt": "o"})
        right.axvline(0, color=INK, lw=0.8)
        right.set_xlabel("rise of −ELBO without the layer (nats per image, 95 %)")

    title = "Layers drawn from their priors instead of inferred from the image"
    height = max(3.2, 1.1 + 0.26 * len(layers))
    return panels("interventions", title, findings.interventions(content), paint, height=height)


def draw_rate_distortion(content: ReportContent) -> Drawing:
    """Distortion against rate as layers are added from the top; points are numbers of layers."""
    top = content.top_kept

    def paint(axes: Axes) -> None:
        rate, distortion = [row.rate for row in top], [row.reconstruction for row in top]
        axes.plot(rate, distortion, color=ACCENT, marker="o")
        for first, last in _close_together(rate, distortion):
            label = f"{first}" if first == last else f"{first} … {last}"
            where = (rate[last], distortion[last])
            axes.annotate(label, where, (4, 4), textcoords="offset points", fontsize=8)
        axes.set(
            xlabel="rate: KL of the layers kept (nats per image)",
            ylabel="distortion: −log p(x | z)\n(nats per image)",
        )
        axes.margins(0.12)
        grid(axes)

    title = "Rate and distortion as layers are added from the top"
    return panels("rate_distortion", title, findings.rate_distortion(content), paint, 1)


def _close_together(x: Sequence[float], y: Sequence[float]) -> list[tuple[int, int]]:
    """First and last index of each run of points that are too close for labels of their own."""
    spans = [max(values) - min(values) or 1.0 for values in (x, y)]
    runs = [(0, 0)]
    for n in range(1, len(x)):
        steps = (abs(x[n] - x[n - 1]) / spans[0], abs(y[n] - y[n - 1]) / spans[1])
        if max(steps) < 0.05:
            runs[-1] = (runs[-1][0], n)
        else:
            runs.append((n, n))
    return runs


def draw_information(content: ReportContent) -> Drawing:
    """Mutual information of the top layers and the image, with their cumulative KL."""
    layers = content.layers
    kl = list(accumulate(layer.kl for layer in layers))

    def paint(axes: Axes) -> None:
        rows = [layer.layer for layer in layers]
        information = [layer.information.value for layer in layers]
        errors = [Z_95 * layer.information.se for layer in layers]
        axes.plot(rows, kl, color=SECOND, marker="s", ls="--")
        axes.errorbar(rows, information, yerr=errors, color=ACCENT, ecolor=INK, marker="o")
        axes.axhline(content.information_ceiling, color=INK, ls=":", lw=1)
        axes.set(xlabel="layers 0 … l", ylabel="nats per image")
        axes.set_xticks(rows[:: 1 + len(rows) // 20])
        axes.set_ylim(0, 1.1 * max(*kl, content.information_ceiling))
        grid(axes)
        ends = [
            (rows[-1], kl[-1], "KL,\ncumulative", SECOND),
            (rows[-1], information[-1], "information", ACCENT),
            (rows[-1], content.information_ceiling, "log N,\nthe ceiling", INK),
        ]
        name_lines(axes, ends)

    title = f"Information about which of {content.information_images} images it is"
    return panels("information", title, findings.information(content), paint, 1)


def draw_aggregates(content: ReportContent) -> Drawing:
    """Histograms of each layer's aggregate posterior and of its prior."""

    def paint(figure: Figure, panel: list[Axes]) -> None:
        for axes, layer in zip(panel, content.layers, strict=True):
            histogram = layer.histogram
            edges = histogram.edges
            width = edges[1] - edges[0]
            density = [share / width for share in histogram.posterior]
            axes.stairs(density, edges, fill=True, color=ACCENT, alpha=0.7)
            axes.stairs([share / width for share in histogram.prior], edges, color=INK, lw=1.2)
            axes.set_title(f"layer {layer.name}", fontsize=8)
            label = "(z − μ)/σ of the prior" if histogram.standardised else "u"
            axes.set_xlabel(label, fontsize=8)
            axes.tick_params(labelsize=8)
        figure.supylabel("probability density", fontsize=9)

    title = "Aggregate posterior (filled) and prior (line); latents standardised by their priors"
    text = findings.aggregates(content)
    return small_multiples("aggregates", title, text, paint, len(content.layers), shared=False)
