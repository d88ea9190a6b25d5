"""Building blocks of plots: panels for wide and narrow pages, dots on an axis, lines with names.

Series are told apart by their names beside them and by markers; the colours are safe for
colour-blind readers and have enough contrast on white and on dark pages.
"""

import textwrap
from collections.abc import Callable, Sequence
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, PercentFormatter

from utils.report.drawing import INK, STYLE, Drawing, verbatim

ACCENT, SECOND = "#3b82c4", "#d9660a"
COLOURS = (ACCENT, SECOND, "#0f9d76", "#c2609a", "#9a7b1e", "#7a7fd6")
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")
WIDE, NARROW = 9.0, 4.7  # inches; at 96 pixels an inch they fill pages of 1,200 and 500 pixels
LABEL_HEIGHT = 0.17  # inches of a line of small text


def panels(
    name: str,
    title: str,
    text: str,
    paint: Callable[..., None],
    count: int = 2,
    height: float = 3.4,
    legend_lines: int = 0,
) -> Drawing:
    """A drawing of `count` panels: side by side on a wide page, stacked on a narrow one.

    paint(axes, …) draws them, and is called with as many axes. height: of a panel, in inches.
    legend_lines: of a legend beside the panels, or below them on a narrow page, for which `beside`
    makes room.
    """

    def figure(stacked: bool) -> Figure:
        shape = (count, 1) if stacked else (1, count)
        legend = LABEL_HEIGHT * legend_lines
        size = (WIDE if count > 1 else 7.5, max(height, legend + 0.6))
        if stacked:
            size = (NARROW, height * count + legend)
        made = Figure(size, layout="constrained")
        axes = made.subplots(*shape, squeeze=False)
        _set_title(made, title, size[0])
        paint(*axes.flat)
        return made

    with matplotlib.rc_context(STYLE):
        return Drawing(name, figure(False), text, figure(True))


def beside(axes: Axes) -> None:
    """A legend of the axes' series beside all panels, or below them on a narrow page."""
    figure = axes.get_figure()
    where = "right upper" if figure.get_figwidth() > NARROW else "lower left"
    figure.legend(*axes.get_legend_handles_labels(), loc=f"outside {where}", fontsize=8)


def small_multiples(
    name: str,
    title: str,
    text: str,
    paint: Callable[[Figure, list[Axes]], None],
    count: int,
    shared: bool = True,
) -> Drawing:
    """A drawing of `count` small panels of the same kind: six in a row, or three on a narrow page.

    shared: whether they have the same axes.
    """

    def figure(columns: int, width: float) -> Figure:
        columns = min(columns, count)
        rows = -(-count // columns)
        made = Figure((width * columns + 0.5, 1.6 * rows + 0.6), layout="constrained")
        _set_title(made, title, max(width * columns, 3.5))
        axes = made.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)
        for unused in axes.flat[count:]:
            unused.set_visible(False)
        for above in axes.flat[max(count - columns, 0) : count]:  # nothing below it
            above.tick_params(labelbottom=True)
        paint(made, list(axes.flat[:count]))
        return made

    with matplotlib.rc_context(STYLE):
        return Drawing(name, figure(6, 1.65), text, figure(3, 1.45))


def _set_title(figure: Figure, title: str, width: float) -> None:
    figure.suptitle(verbatim(textwrap.fill(title, int(13 * width))), fontsize=10)


def dots(
    axes: Axes,
    values: Sequence[float],
    margins: Sequence[tuple[float, float]],
    labels: Sequence[str],
    hollow: Sequence[bool],
    style: dict,
) -> None:
    """A row per layer from the top: a dot at its value, its interval, and its value in words.

    margins: below and above each value. hollow: rows whose dot is not filled.
    """
    for row, (value, margin, label, empty) in enumerate(
        zip(values, margins, labels, hollow, strict=True)
    ):
        face = "none" if empty else style["color"]
        axes.errorbar(
            value, row, xerr=[[m] for m in margin], ecolor=INK, elinewidth=1, mfc=face, **style
        )
        axes.annotate(
            label, (value + margin[1], row), (5, 0), textcoords="offset points", va="center"
        )
    axes.margins(x=0.3)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_yticks(range(len(values)))
    axes.set_ylabel("layer (0 = top)")
    grid(axes, "x")


def grid(axes: Axes, direction: str = "both") -> None:
    """A faint grid behind the figures."""
    axes.grid(axis=direction)
    axes.set_axisbelow(True)


def series_style(index: int) -> dict:
    """Colour, marker and line of the series of that number; their cycles differ in length."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index % len(MARKERS)],
        "ls": LINES[index % len(LINES)],
    }


def name_lines(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its right end, moved apart where they would overlap.

    ends: (x, y, name, colour) of each line. Call it when the axes' limits are final.
    """
    height = axes.get_figure().get_figheight() * axes.get_position().height
    to_fraction = axes.transScale + axes.transLimits
    heights = [to_fraction.transform((x, y))[1] for x, y, *_ in ends]
    lines = max(text.count("\n") + 1 for _, _, text, _ in ends)
    apart = _moved_apart(heights, LABEL_HEIGHT * lines / height)
    leader = {"arrowstyle": "-", "lw": 0.8, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)}
    for (x, y, text, colour), where in zip(ends, apart, strict=True):
        axes.annotate(
            text,
            (x, y),
            (1.03, where),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={**leader, "color": colour},
        )


def _moved_apart(positions: Sequence[float], gap: float) -> list[float]:
    """The positions, each at least `gap` over the one below, and the highest at 1 if it fits."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    moved = list(positions)
    for below, above in pairwise(order):
        moved[above] = max(moved[above], moved[below] + gap)
    limit = 1.0
    for index in reversed(order):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


def percent(digits: int = 0) -> Formatter:
    """Shares as percentages."""
    return PercentFormatter(1.0, digits)
