"""A comparison as tables: one definition each, for the terminal and for the page."""

from collections.abc import Sequence

from utils.evaluation.bound import NllEstimate
from utils.evaluation.collapse import Z_95
from utils.evaluation.compare import Comparison, GroupDifference, GroupSummary, RunSummary
from utils.table import Cell, Column, Table, integer, number, share, signed, with_error


def means_table(comparison: Comparison) -> Table:
    """A row per measure, a column per group."""
    groups = comparison.groups
    rows = []
    for same in zip(*(group.measures for group in groups), strict=True):
        digits = _digits(same[0].unit)
        cells = [mean_with_sd(measure.mean, measure.sd, digits) for measure in same]
        rows.append([Cell(same[0].measure), Cell(same[0].unit), *cells])
    return Table(
        f"{over_seeds(groups)}; {comparison.images:,} {comparison.split} images",
        [*_MEASURE_COLUMNS, *(Column(group.letter) for group in groups)],
        rows,
    )


def over_seeds(groups: Sequence[GroupSummary]) -> str:
    """What the figures of groups are, in words."""
    seeds = {len(group.seeds) for group in groups}
    if seeds == {1}:
        return "One seed each"
    count = f"{seeds.pop()} seeds each" if len(seeds) == 1 else "the seeds of each"
    return f"Mean (standard deviation) over {count}"


def key_table(comparison: Comparison) -> Table:
    """What the letters stand for: a column each; name, seeds and differing settings."""
    groups = comparison.groups
    rows = [
        [Cell("name"), *(Cell(group.runs[0].name) for group in groups)],
        [Cell("train.seed"), *(Cell(", ".join(map(str, group.seeds))) for group in groups)],
    ]
    for key in groups[0].settings:
        rows.append([Cell(key), *(Cell(_setting(group.settings[key])) for group in groups)])
    return Table(
        "The letters of the models, and the settings that tell them apart",
        [Column("setting", text=True), *(Column(group.letter, text=True) for group in groups)],
        rows,
    )


def _setting(value: object) -> str:
    return "–" if value is None else str(value)


def layers_table(comparison: Comparison) -> Table:
    """KL and active units per layer, a row per layer, two columns per group."""
    groups = comparison.groups
    rows = []
    for layer in range(max(len(group.kl) for group in groups)):
        row = [integer(layer)]
        for group in groups:
            if layer < len(group.kl):
                active, _ = group.active[layer]
                row += [mean_with_sd(*group.kl[layer], 2), share(active)]
            else:
                row += [Cell("", -1), Cell("", -1)]
        rows.append(row)
    columns = [Column("layer", "0 is the top, the context where there is one", text=True)]
    for group in groups:
        columns.append(Column(f"KL {group.letter}", unit="nats"))
        columns.append(Column(f"active {group.letter}", unit="% of units"))
    return Table(f"KL per layer (nats) and active units. {over_seeds(groups)}", columns, rows)


def differences_table(difference: GroupDifference) -> Table:
    """A group's differences from the first, A, a row per measure."""
    rows = []
    for row in difference.measures:
        digits = _digits(row.unit)
        rows.append(
            [
                Cell(row.measure),
                Cell(row.unit),
                signed(row.mean, digits),
                _half_width(row.over_images, digits),
                _half_width(row.over_seeds, digits),
            ]
        )
    return Table(
        f"{difference.letter} less A",
        [
            *_MEASURE_COLUMNS,
            Column("difference", "of the means"),
            Column("± over images", "95 %, paired over the same images"),
            Column("± over seeds", "95 %, Student's t; needs two seeds of each"),
        ],
        rows,
    )


def runs_table(comparison: Comparison) -> Table:
    """Every run's own figures; estimators that only some runs have stay empty in the others."""
    runs = [(group.letter, run) for group in comparison.groups for run in group.runs]
    estimators = [estimate.estimator for estimate in runs[0][1].likelihoods]
    return Table(
        "Each run; ± is 95 %, over images",
        [
            Column("model", text=True),
            Column("seed", "train.seed"),
            *(
                Column(f"{estimate.estimator}, K = {estimate.num_samples}", unit="nats")
                for estimate in runs[0][1].likelihoods
            ),
            Column("−elbo", "reconstruction + KL", unit="nats"),
            Column("KL", "all layers", unit="nats"),
            Column("active units", "with a conservative 95 % interval", unit="% of all"),
            Column("KL per layer", "from the top", text=True, unit="nats"),
        ],
        [_run_cells(letter, run, estimators) for letter, run in runs],
    )


def _run_cells(letter: str, run: RunSummary, estimators: list[str]) -> list[Cell]:
    by_name = {estimate.estimator: estimate for estimate in run.likelihoods}
    low, high = run.active_units_interval
    return [
        Cell(letter),
        integer(run.seed),
        *(_nll(by_name.get(name)) for name in estimators),
        with_error(run.nelbo, Z_95 * run.nelbo_se),
        number(sum(run.kl)),
        Cell(f"{run.active_units:.1%} ({low:.1%} – {high:.1%})", run.active_units),
        Cell(", ".join(f"{kl:.2f}" for kl in run.kl)),
    ]


_MEASURE_COLUMNS = (Column("measure", text=True), Column("unit", text=True))


def _digits(unit: str) -> int:
    return {"bits/dim": 4, "%": 1}.get(unit, 2)


def mean_with_sd(mean: float, sd: float | None, digits: int) -> Cell:
    """“4.36 (0.68)”: ± is kept for 95 % intervals."""
    shown = number(mean, digits)
    return shown if sd is None else Cell(f"{shown.text} ({sd:.{digits}f})", mean)


def _half_width(value: float | None, digits: int) -> Cell:
    return Cell("–", -1) if value is None else number(value, digits)


def _nll(estimate: NllEstimate | None) -> Cell:
    return Cell("–", -1) if estimate is None else with_error(estimate.nll, Z_95 * estimate.nll_se)
