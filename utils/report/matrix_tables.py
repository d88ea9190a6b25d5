"""The collapse matrix as tables: verdicts, figures, differences, settings and costs, runs."""

from collections.abc import Sequence
from statistics import fmean

from utils.report.matrix import LEVEL, ArmSummary, Change, Matrix
from utils.report.matrix_cells import BY_KEY, GROUPS, MEASURES, CellFigures, Measure
from utils.table import Cell, Column, Table, integer

MARK = f"• resolved over seeds at {LEVEL:.0%} (Holm)"
OF_VERDICT = ("nll", "kl", "in_use", "information")
DROP = {"kl": 2, "in_use": 3}  # of a narrow terminal, after the number of seeds
COSTS = ("parameters", "seconds")


def verdict_table(matrix: Matrix) -> Table:
    """Each arm's verdict, and the changes of the measures that it rests on."""
    shown = [BY_KEY[key] for key in OF_VERDICT]
    rows = [
        [
            Cell(arm.label),
            Cell(arm.verdict or "compared with"),
            Cell(str(len(arm.seeds)), len(arm.seeds)),
            *(_verdict_cell(arm, measure) for measure in shown),
        ]
        for arm in matrix.arms
    ]
    return Table(
        f"{matrix.arms[0].label} itself; below it, differences from it ± 95 % over seeds; {MARK}",
        [
            Column("arm", text=True),
            Column("verdict", "of the reading rule", text=True),
            Column("seeds", "finished", drop=1),
            *(_column(measure, DROP.get(measure.key, 0)) for measure in shown),
        ],
        rows,
    )


def figures_tables(matrix: Matrix) -> list[Table]:
    """Every measure of every arm, in two tables that fit a screen."""
    return [
        Table(
            f"{title}: means over seeds ± half of the 95 % interval over seeds",
            [Column("arm", text=True), *(_column(measure) for measure in shown)],
            [[Cell(arm.label), *(_figure(matrix, arm, m) for m in shown)] for arm in matrix.arms],
        )
        for title, shown in _halves(MEASURES)
    ]


def differences_tables(matrix: Matrix) -> list[Table]:
    """Every compared measure's difference from the first arm, likewise."""
    tables = []
    for title, shown in _halves([measure for measure in MEASURES if measure.compared]):
        rows = [
            [Cell(arm.label), *(_change(arm.changes.get(m.key), m, True) for m in shown)]
            for arm in matrix.arms[1:]
        ]
        columns = [Column("arm", text=True), *(_column(measure) for measure in shown)]
        bracket = "; (± 95 % over images)" if shown[0].per_image else ""
        caption = f"{title}, less {matrix.arms[0].label}: ± 95 % over seeds{bracket}; {MARK}"
        tables.append(Table(caption, columns, rows))
    return tables


def _halves(measures: Sequence[Measure]) -> list[tuple[str, list[Measure]]]:
    """Two groups at a time, each with its title."""
    return [
        (f"{first} and {second}".capitalize(), [m for m in measures if m.group in (first, second)])
        for first, second in (GROUPS[:2], GROUPS[2:])
    ]


def settings_table(matrix: Matrix) -> Table:
    """What each arm sets and what it costs."""
    base = matrix.arms[0]
    rows = []
    for arm in matrix.arms:
        text = ", ".join(f"{key}={value}" for key, value in arm.settings.items())
        costs = [_cost(arm, base, BY_KEY[key]) for key in COSTS]
        rows.append([Cell(arm.label), Cell(text or "nothing"), *costs])
    return Table(
        "Everything else is the experiment's own",
        [
            Column("arm", text=True),
            Column("sets", "keys of the command line", text=True),
            *(_column(BY_KEY[key]) for key in COSTS),
        ],
        rows,
    )


def runs_table(matrix: Matrix) -> Table:
    """Every run's own figures."""
    shown = [measure for measure in MEASURES if measure.key not in COSTS]
    rows = [
        [
            Cell(cell.arm),
            integer(cell.seed),
            *(_number(cell.values[measure.key], measure) for measure in shown),
            Cell(_layers(cell)),
            Cell(cell.run),
        ]
        for arm in matrix.arms
        for cell in matrix.of_arm(arm.label)
    ]
    return Table(
        f"The {len(rows)} runs",
        [
            Column("arm", text=True),
            Column("seed", "train.seed"),
            *(_column(measure) for measure in shown),
            Column("KL by latent", "nats, from the top; * in use"),
            Column("folder", text=True),
        ],
        rows,
        folded=True,
    )


def _layers(cell: CellFigures) -> str:
    return " ".join(f"{layer.kl:.2f}{'*' if layer.in_use else ''}" for layer in cell.layers)


def _column(measure: Measure, drop: int = 0) -> Column:
    unit = f" ({measure.unit})" if measure.unit in ("nats", "%") else ""
    return Column(f"{measure.title}{unit}", measure.explanation, drop=drop)


def _verdict_cell(arm: ArmSummary, measure: Measure) -> Cell:
    if not arm.verdict:
        return _mean(*arm.means[measure.key], measure)
    return _change(arm.changes.get(measure.key), measure)


def _figure(matrix: Matrix, arm: ArmSummary, measure: Measure) -> Cell:
    """A mean with its interval; with what else belongs to it."""
    cell, own = _mean(*arm.means[measure.key], measure), matrix.of_arm(arm.label)
    if measure.key == "active":
        low, high = (fmean(run.active_interval[end] for run in own) for end in (0, 1))
        return Cell(f"{cell.text} [{low:.0f}, {high:.0f}]", cell.value)
    if measure.key == "information" and any(run.saturated for run in own):
        return Cell(f"{cell.text} ^", cell.value)
    return cell


def _mean(mean: float, over_seeds: float | None, measure: Measure) -> Cell:
    text = _number(mean, measure).text
    return Cell(text if over_seeds is None else f"{text} ± {_width(over_seeds, measure)}", mean)


def _change(change: Change | None, measure: Measure, over_images: bool = False) -> Cell:
    if change is None:
        return Cell("–")
    text = f"{change.mean:+.{measure.decimals}f}"
    if change.over_seeds is not None:
        text += f" ± {_width(change.over_seeds, measure)}"
    if over_images and change.over_images is not None:
        text += f" ({_width(change.over_images, measure)})"
    return Cell(text + (" •" if change.direction else ""), change.mean)


def _cost(arm: ArmSummary, base: ArmSummary, measure: Measure) -> Cell:
    """A mean, and its ratio to the first arm's."""
    mean, first = arm.means[measure.key][0], base.means[measure.key][0]
    text = _number(mean, measure).text
    return Cell(text if arm is base else f"{text} (× {mean / first:.2f})", mean)


def _number(value: float, measure: Measure) -> Cell:
    return Cell(f"{value:,.{measure.decimals}f}", value)


def _width(value: float, measure: Measure) -> str:
    return f"{value:.{measure.decimals}f}"


def label_list(labels: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(labels[:-1]), *labels[-1:]]))
