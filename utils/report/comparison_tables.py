"""A comparison as tables: one definition each, for the terminal and for the page."""

from utils.evaluation.bound import NllEstimate
from utils.evaluation.compare import Comparison, GroupDifference, RunSummary
from utils.table import Cell, Column, Table, integer, number, share, with_error


def means_table(comparison: Comparison) -> Table:
    """A row per measure, a column per group."""
    groups = comparison.groups
    rows = []
    for same in zip(*(group.measures for group in groups), strict=True):
        digits = _digits(same[0].unit)
        cells = [_with_sd(measure.mean, measure.sd, digits) for measure in same]
        rows.append([Cell(same[0].measure), Cell(same[0].unit), *cells])
    seeds = {len(group.seeds) for group in groups}
    count = f"{seeds.pop()} seed(s) each" if len(seeds) == 1 else "several seeds"
    return Table(
        f"Mean ± standard deviation over {count}; {comparison.images:,} {comparison.split} images",
        [*_MEASURE_COLUMNS, *(Column(group.label) for group in groups)],
        rows,
    )


def layers_table(comparison: Comparison) -> Table:
    """KL and active units per layer, a row per layer, two columns per group."""
    groups = comparison.groups
    rows = []
    for layer in range(max(len(group.kl) for group in groups)):
        row = [integer(layer)]
        for group in groups:
            if layer < len(group.kl):
                active, _ = group.active[layer]
                row += [_with_sd(*group.kl[layer], 2), share(active)]
            else:
                row += [Cell("", -1), Cell("", -1)]
        rows.append(row)
    columns = [Column("layer", "0 is the top, the context where there is one", text=True)]
    for group in groups:
        columns.append(Column(f"KL {group.label}", "nats, mean ± sd over seeds"))
        columns.append(Column("active", "share of the layer's units, mean over seeds"))
    return Table("KL per layer (nats) and active units, from the top", columns, rows)


def differences_table(difference: GroupDifference, base: str) -> Table:
    """A group's differences from the base, a row per measure."""
    rows = []
    for row in difference.measures:
        digits = _digits(row.unit)
        rows.append(
            [
                Cell(row.measure),
                Cell(row.unit),
                Cell(f"{row.mean:+.{digits}f}", row.mean),
                _half_width(row.over_images, digits),
                _half_width(row.over_seeds, digits),
            ]
        )
    return Table(
        f"{difference.label} less {base}",
        [
            *_MEASURE_COLUMNS,
            Column("difference", "of the means"),
            Column("± over images", "95 %, paired over the same images"),
            Column("± over seeds", "95 %, Student's t"),
        ],
        rows,
    )


def runs_table(comparison: Comparison) -> Table:
    """Every run's own figures; estimators that only some runs have stay empty in the others."""
    runs = [(group.label, run) for group in comparison.groups for run in group.runs]
    estimators = [estimate.estimator for estimate in runs[0][1].likelihoods]
    return Table(
        "Each run (nats; ± standard error over images)",
        [
            Column("group", text=True),
            Column("seed", "train.seed"),
            *(
                Column(f"{estimate.estimator}, K = {estimate.num_samples}")
                for estimate in runs[0][1].likelihoods
            ),
            Column("−elbo", "reconstruction + KL"),
            Column("KL", "all layers"),
            Column("active units", "with a conservative 95 % interval"),
            Column("KL per layer", "from the top"),
            Column("checkpoint", text=True),
        ],
        [_run_cells(label, run, estimators) for label, run in runs],
    )


def _run_cells(label: str, run: RunSummary, estimators: list[str]) -> list[Cell]:
    by_name = {estimate.estimator: estimate for estimate in run.likelihoods}
    low, high = run.active_units_interval
    return [
        Cell(label),
        integer(run.seed),
        *(_nll(by_name.get(name)) for name in estimators),
        with_error(run.nelbo, run.nelbo_se),
        number(sum(run.kl)),
        Cell(f"{run.active_units:.1%} ({low:.1%} – {high:.1%})", run.active_units),
        Cell(", ".join(f"{kl:.2f}" for kl in run.kl)),
        Cell(run.checkpoint),
    ]


_MEASURE_COLUMNS = (Column("measure", text=True), Column("unit", text=True))


def _digits(unit: str) -> int:
    return {"bits/dim": 4, "%": 1}.get(unit, 2)


def _with_sd(mean: float, sd: float | None, digits: int) -> Cell:
    return number(mean, digits) if sd is None else with_error(mean, sd, digits)


def _half_width(value: float | None, digits: int) -> Cell:
    return Cell("–", -1) if value is None else number(value, digits)


def _nll(estimate: NllEstimate | None) -> Cell:
    return Cell("–", -1) if estimate is None else with_error(estimate.nll, estimate.nll_se)
