"""The tables of stored results, in Markdown: a row for each model, and the differences."""

from collections.abc import Sequence
from statistics import fmean

from docs.results.collect import Results, TrainedRun
from utils.evaluation.bound import NllEstimate
from utils.evaluation.collapse import Z_95
from utils.report.matrix import ArmSummary, Change, half_width
from utils.report.matrix_cells import BY_KEY
from utils.table import minus

PAPER = {  # Kuzina & Tomczak 2023: −log p(x) in nats by `published`, active units in %
    "mnist_ladder": (None, "34"),
    "mnist_dct_ladder": ("76.62", "49"),
    "omniglot_dct_ladder": ("86.11", None),
}
MEANS = ("nelbo", "kl", "kl_top", "active", "in_use", "worth", "information")
CHANGES = ("nll", "nelbo", "kl", "kl_top", "information", "active", "worth")
NONE = "–"
Kind = tuple[str, int, int]  # estimator, K, images


def results_table(results: Results) -> list[list[str]]:
    """A row for each model; without the columns that are empty in all."""
    shown = kinds(results)
    titles = ["model", "seeds", "epochs (best)", *(kind_title(k, results.images) for k in shown)]
    titles += ["the paper: `published` (nats)", *map(title_of, MEANS)]
    titles += ["the paper: active units (%)", "hours a run"]
    rows = [titles, *(model_row(results, arm, shown) for arm in results.arms)]
    kept = [i for i in range(len(titles)) if any(row[i] != NONE for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def model_row(results: Results, arm: ArmSummary, shown: Sequence[Kind]) -> list[str]:
    """The cells of one model."""
    runs = trained(results, arm)
    same = all(
        key.startswith(("train.", "model.is_k")) for key in arm.settings.keys() - {"experiment"}
    )
    likelihood, active = PAPER.get(arm.settings["experiment"] if same else "", (None, None))
    epochs = ", ".join(f"{run.epochs} ({run.best_epoch})" for run in runs)
    row = [f"`{arm.label}`", ", ".join(map(str, arm.seeds)), epochs]
    row += [likelihood_cell(dict(zip(arm.seeds, runs, strict=True)), kind) for kind in shown]
    row += [likelihood, *(mean_cell(results, arm, key) for key in MEANS), active]
    return [cell or NONE for cell in [*row, f"{fmean(run.hours for run in runs):.3g}"]]


def trained(results: Results, arm: ArmSummary) -> list[TrainedRun]:
    """A model's runs, by seed."""
    by_name = {run.run: run for run in results.trained}
    return [by_name[cell.run] for cell in results.of_arm(arm.label)]


def kinds(results: Results) -> list[Kind]:
    """Those that some run has, but for what every run that has it exceeds in K and images."""
    by_run = [{kind_of(estimate) for estimate in run.likelihoods} for run in results.trained]
    found = set.union(*by_run)
    return sorted(
        kind
        for kind in found
        if not any(
            exceeds(other, kind) and all(other in own for own in by_run if kind in own)
            for other in found
        )
    )


def kind_of(estimate: NllEstimate) -> Kind:
    """Estimates of the same kind compare."""
    return estimate.estimator, estimate.num_samples, estimate.images


def exceeds(other: Kind, kind: Kind) -> bool:
    """Whether the other is the same estimator with more samples or images, and no fewer."""
    return other != kind and other[0] == kind[0] and other[1] >= kind[1] and other[2] >= kind[2]


def kind_title(kind: Kind, all_images: int) -> str:
    """As in “`iwae`, K = 100, all images (nats)”."""
    estimator, samples, images = kind
    which = "all images" if images == all_images else f"the first {images:,} images"
    return f"−log p(x): `{estimator}`, K = {samples:,}, {which} (nats)"


def of_kind(run: TrainedRun, kind: Kind) -> NllEstimate | None:
    """A run's estimate of that kind, if there is one."""
    return {kind_of(estimate): estimate for estimate in run.likelihoods}.get(kind)


def likelihood_cell(runs: dict[int, TrainedRun], kind: Kind) -> str | None:
    """The mean over the seeds that have the estimate, named if not all do, with both intervals.

    Over images: of the seed whose interval is the widest, since all have the same images.
    """
    found = {seed: estimate for seed, run in runs.items() if (estimate := of_kind(run, kind))}
    if not found:
        return None
    values = [estimate.nll for estimate in found.values()]
    over_images = Z_95 * max(estimate.nll_se for estimate in found.values())
    text = f"{fmean(values):z.2f} ({widths(half_width(values), over_images, 2)})"
    return minus(text if len(found) == len(runs) else f"{text}, seed {', '.join(map(str, found))}")


def mean_cell(results: Results, arm: ArmSummary, key: str) -> str:
    """A measure's mean over the seeds; ^ where it is at its ceiling in some."""
    text = interval(*arm.means[key], BY_KEY[key].decimals)
    reached = key == "information" and any(run.saturated for run in results.of_arm(arm.label))
    return f"{text} ^" if reached else text


def widths(over_seeds: float | None, over_images: float | None, decimals: int) -> str:
    """Half-widths of 95 % intervals, over seeds and then over images; a dash for none."""
    both = (over_seeds, over_images)
    return "; ".join(NONE if width is None else f"± {width:.{decimals}f}" for width in both)


def interval(mean: float, width: float | None, decimals: int) -> str:
    """As in “5.61 ± 0.01”."""
    text = f"{mean:z.{decimals}f}"
    return minus(text if width is None else f"{text} ± {width:.{decimals}f}")


def title_of(key: str) -> str:
    """A measure with its unit."""
    return f"{BY_KEY[key].title} ({BY_KEY[key].unit})"


def changes_table(results: Results) -> list[list[str]]:
    """A row for each model but the first."""
    rows = [
        [f"`{arm.label}`", *(change_cell(arm.changes.get(key), key) for key in CHANGES)]
        for arm in results.arms[1:]
    ]
    return [["model", *map(title_of, CHANGES)], *rows]


def change_cell(change: Change | None, key: str) -> str:
    """The mean difference with its intervals; a dash where no seed is in common."""
    if change is None:
        return NONE
    decimals = BY_KEY[key].decimals
    mark = " •" if change.direction else ""
    both = widths(change.over_seeds, change.over_images, decimals)
    return minus(f"{change.mean:+z.{decimals}f} ({both}){mark}")


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; its first row is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
