"""The plot of a comparison: KL per layer and active units of several models."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes

from utils.evaluation.collapse import ACTIVE_THRESHOLD, THRESHOLDS
from utils.evaluation.compare import GroupSummary
from utils.report import findings
from utils.report.drawing import INK, Drawing, verbatim
from utils.report.panels import grid, panels, percent, series_style

LEGEND_WIDTH = 34  # letters


def draw_comparison(groups: Sequence[GroupSummary]) -> Drawing:
    """KL per layer of several models, and the share of their units over each of THRESHOLDS."""
    kl = {group.letter: [mean for mean, _ in group.kl] for group in groups}
    curves = {group.letter: group.active_by_threshold for group in groups}
    labels = {group.letter: group.label for group in groups}
    styles = {name: series_style(index) for index, name in enumerate(kl)}
    width = 0.7 / len(kl)
    columns = 2 if max(map(len, labels.values())) < LEGEND_WIDTH // 2 else 1

    def paint(left: Axes, right: Axes) -> None:
        for index, (name, values) in enumerate(kl.items()):
            offset = width * (index - 0.5 * (len(kl) - 1))
            positions = [layer + offset for layer in range(len(values))]
            key = textwrap.fill(f"{name}: {verbatim(labels[name])}", LEGEND_WIDTH)
            left.plot(positions, values, **{**styles[name], "ls": ""}, label=key)
            style = {"markevery": (index, 12), "ms": 4, "lw": 1.3}
            right.plot(THRESHOLDS, curves[name], **style, **styles[name])
            level = 0.8 - 0.6 * index / len(kl)  # where the curve gets its letter
            at = min(range(len(THRESHOLDS)), key=lambda n: abs(curves[name][n] - level))
            where = (THRESHOLDS[at], curves[name][at])
            right.annotate(name, where, (5, 3), textcoords="offset points", weight="bold")
        left.set(xlabel="layer (0 = top)", ylabel="KL (nats per image)")
        left.set_xticks(range(max(map(len, kl.values()))))
        left.set_ylim(bottom=min(0, left.get_ylim()[0]))
        left.legend(loc="lower left", bbox_to_anchor=(0, 1.02), fontsize=8, ncols=columns)
        right.set(xlabel="threshold on the variance of E[z | x] over x", ylabel="active units")
        right.axvline(ACTIVE_THRESHOLD, color=INK, ls=":", lw=1)
        right.set_xscale("log")
        right.set_ylim(-0.02, 1.02)
        right.yaxis.set_major_formatter(percent())
        grid(left, "y")
        grid(right)

    usual = THRESHOLDS.index(min(THRESHOLDS, key=lambda t: abs(t - ACTIVE_THRESHOLD)))
    text = findings.comparison(kl, {name: curve[usual] for name, curve in curves.items()})
    title = "KL per layer, and active units by threshold (means over seeds)"
    return panels("comparison", title, text, paint, height=3.4 + 0.1 * len(kl))
