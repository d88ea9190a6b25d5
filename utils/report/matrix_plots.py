"""Figures of the matrix: latents by arm, likelihood against information, KL over epochs."""

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from utils.report.drawing import INK, STYLE, Drawing, verbatim
from utils.report.matrix import Matrix
from utils.report.matrix_cells import CellFigures, LayerFigures

Panel = tuple[str, Callable[[LayerFigures], float], dict | None]  # None: logarithmic
PANELS: tuple[Panel, ...] = (
    ("KL (nats)", lambda layer: layer.kl, None),
    ("active units (%)", lambda layer: layer.active, {"vmin": 0.0, "vmax": 100.0}),
    ("lost without it (nats)", lambda layer: layer.lost, None),
)
TICKS = [0, 0.1, 1, 10, 30]  # of the curves' logarithmic scale
ALL_TICKS = [-100, -10, -1, -0.1, 0, 0.1, 1, 10, 100, 1000]  # of the heat maps', where they reach
MARKERS = "osD^vP*X<>hpd"


def draw_heat_maps(matrix: Matrix) -> Drawing:
    """Latents × arms, a column for each seed: KL, active units, the cost of leaving one out."""
    arms = {arm.label: matrix.of_arm(arm.label) for arm in matrix.arms}
    cells = [cell for own in arms.values() for cell in own]
    names = _latents(matrix)
    with matplotlib.rc_context(STYLE):
        size = (min(11.0, 3.5 + 0.15 * len(cells)), 1.3 + len(PANELS) * (0.5 + 0.2 * len(names)))
        figure = Figure(size, layout="constrained")
        rows = figure.subplots(len(PANELS), 1, sharex=True)
        edges = np.cumsum([len(own) for own in arms.values()])
        for axes, (name, value, scale) in zip(rows, PANELS, strict=True):
            grid = _grid(cells, names, value)
            colours = {"aspect": "auto", "cmap": "cividis"}
            image = axes.imshow(grid, **colours, **(scale or {"norm": _logarithmic(grid)}))
            bar = figure.colorbar(image, ax=axes, label=name, pad=0.01)
            if scale is None:
                ticks = [tick for tick in ALL_TICKS if image.norm.vmin <= tick <= image.norm.vmax]
                bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
                bar.minorticks_off()
            axes.set_yticks(range(len(names)), names)
            axes.vlines(edges[:-1] - 0.5, -0.5, len(names) - 0.5, color="white", lw=2.5)
        middles = edges - np.array([len(own) for own in arms.values()]) / 2 - 0.5
        rows[-1].set_xticks(middles, list(map(verbatim, arms)), rotation=35, ha="right")
    return Drawing("matrix_latents", figure, "KL, active units and use of each latent, by arm.")


def _latents(matrix: Matrix) -> list[str]:
    """The rows: a context's, if any arm has one, and the ladder's latents from the top."""
    context = any(cell.layers[0].context for cell in matrix.cells)
    ladder = max(len(cell.layers) - cell.layers[0].context for cell in matrix.cells)
    numbers = [str(number) for number in range(1, ladder + 1)]
    numbers[0] += " (top)"
    numbers[-1] = f"{ladder} (bottom)"
    return ["context"] * context + numbers


def _grid(
    cells: Sequence[CellFigures], names: Sequence[str], value: Callable[[LayerFigures], float]
) -> np.ndarray:
    """(rows, cells), NaN where an arm has no context."""
    grid = np.full((len(names), len(cells)), np.nan)
    for column, cell in enumerate(cells):
        first = len(names) - len(cell.layers)
        grid[first:, column] = [value(layer) for layer in cell.layers]
    return grid


def _logarithmic(grid: np.ndarray) -> SymLogNorm:
    """From 0 or the lowest figure, where one is negative, to the highest: nothing is cut off."""
    return SymLogNorm(0.1, vmin=min(0.0, np.nanmin(grid)), vmax=max(1.0, np.nanmax(grid)))


def draw_trade(matrix: Matrix) -> Drawing:
    """−log p(x) against the top latent's information: a dot per seed, a cross per arm."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((8.0, 4.6), layout="constrained")
        axes = figure.subplots()
        base = matrix.arms[0].means
        axes.axhline(base["nll"][0], color=INK, lw=0.7, ls=":")
        axes.axvline(base["information"][0], color=INK, lw=0.7, ls=":")
        colours = matplotlib.colormaps["tab20"].colors
        order = [*range(0, 20, 2), *range(1, 20, 2)]  # the saturated ones first
        for index, arm in enumerate(matrix.arms):
            style = {"color": colours[order[index % 20]], "marker": MARKERS[index % len(MARKERS)]}
            _dots(axes, matrix.of_arm(arm.label), verbatim(arm.label), style)
        axes.invert_yaxis()
        axes.set(xlabel="I(x; top latent) (nats)", ylabel="−log p(x) (nats), better upwards")
        axes.grid()
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return Drawing("matrix_trade", figure, "−log p(x) against information in the top latent.")


def _dots(axes: Axes, own: Sequence[CellFigures], label: str, style: dict) -> None:
    """An arm's seeds, and their mean with standard deviations."""
    across = [cell.values["information"] for cell in own]
    up = [cell.values["nll"] for cell in own]
    axes.scatter(across, up, s=22, label=label, **style)
    if len(own) > 1:
        spread = {"xerr": stdev(across), "yerr": stdev(up)}
        axes.errorbar(fmean(across), fmean(up), **spread, fmt="none", ecolor=style["color"], lw=1)


def draw_kl_curves(matrix: Matrix) -> Drawing:
    """KL per latent over the epochs, a panel for each arm, the mean over its seeds."""
    columns = min(4, len(matrix.arms))
    rows = -(-len(matrix.arms) // columns)
    names = _latents(matrix)
    with matplotlib.rc_context(STYLE):
        figure = Figure((2.5 * columns, 1.9 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(matrix.arms) :]:
            axes.set_visible(False)
        for axes, arm in zip(grid.flat, matrix.arms, strict=False):
            _kl_curves(axes, matrix.of_arm(arm.label), names)
            axes.set_title(verbatim(arm.label))
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel("KL (nats)", fontsize=9)
        lines = {line.get_label(): line for axes in grid.flat for line in axes.get_lines()}
        found = [name for name in names if name in lines]
        figure.legend(
            [lines[name] for name in found], found, loc="outside upper center", ncols=len(found)
        )
    return Drawing("matrix_kl", figure, "KL of each latent over training, by arm.")


def _kl_curves(axes: Axes, own: Sequence[CellFigures], names: Sequence[str]) -> None:
    """A line for each latent, over the epochs that all of the arm's runs have."""
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.92, len(names)))
    epochs = sorted(set.intersection(*(set(cell.epochs) for cell in own)))
    first = len(names) - len(own[0].layers)
    for layer in range(len(own[0].layers)):
        runs = [dict(zip(cell.epochs, cell.kl[layer], strict=True)) for cell in own]
        values = [fmean(run[epoch] for run in runs) for epoch in epochs]
        row = first + layer
        axes.plot(epochs, values, color=colours[row], lw=1.3, label=names[row])
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_yticks(TICKS, labels=[f"{tick:g}" for tick in TICKS])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid()
