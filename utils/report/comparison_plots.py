"""The plot of a comparison: KL per layer and active units of several models."""

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from utils.evaluation.collapse import ACTIVE_THRESHOLD, THRESHOLDS
from utils.evaluation.compare import GroupSummary
from utils.report import findings
from utils.report.drawing import INK, Drawing, verbatim
from utils.report.panels import beside, grid, panels, percent, series_style

LEGEND_WIDTH = 30  # letters
FEW = 4  # curves that are named where they are farthest apart


def draw_comparison(groups: Sequence[GroupSummary]) -> Drawing:
    """KL per layer of several models, and the share of their units over each of THRESHOLDS."""
    kl = {group.letter: [mean for mean, _ in group.kl] for group in groups}
    curves = {group.letter: group.active_by_threshold for group in groups}
    keys = {
        group.letter: textwrap.fill(f"{group.letter}: {verbatim(group.label)}", LEGEND_WIDTH)
        for group in groups
    }
    styles = {name: series_style(index) for index, name in enumerate(kl)}
    width = 0.7 / len(kl)

    def paint(left: Axes, right: Axes) -> None:
        for index, (name, values) in enumerate(kl.items()):
            offset = width * (index - 0.5 * (len(kl) - 1))
            positions = [layer + offset for layer in range(len(values))]
            left.plot(positions, values, **{**styles[name], "ls": ""}, label=keys[name])
            style = {"markevery": (index, 12), "ms": 4, "lw": 1.3}
            right.plot(THRESHOLDS, curves[name], **style, **styles[name])
            _write_name(right, index, name, curves, styles[name]["color"])
        left.set(xlabel="layer (0 = top)", ylabel="KL (nats per image)")
        left.set_xticks(range(max(map(len, kl.values()))))
        left.set_ylim(bottom=min(0, left.get_ylim()[0]))
        beside(left)
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
    lines = sum(key.count("\n") + 1.5 for key in keys.values())
    return panels("comparison", title, text, paint, legend_lines=math.ceil(lines))


def _write_name(
    axes: Axes, index: int, name: str, curves: Mapping[str, Sequence[float]], colour: str
) -> None:
    """The curve's name beside it: of a few curves where it is farthest from the nearest other."""
    own, above = curves[name], True
    others = [curve for other, curve in curves.items() if other != name]
    if 0 < len(others) < FEW:
        gaps = [min((y - curve[n] for curve in others), key=abs) for n, y in enumerate(own)]
        at = max(range(len(own)), key=lambda n: abs(gaps[n]))
        above = gaps[at] >= 0
    else:  # each at a height of its own
        level = 0.9 - 0.11 * (index % 8)
        at = min(range(len(own)), key=lambda n: abs(own[n] - level))
    axes.annotate(
        name,
        (THRESHOLDS[at], own[at]),
        (6, 3) if above else (-13, -11),
        textcoords="offset points",
        weight="bold",
        color=colour,
    )
