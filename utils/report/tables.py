"""A score as tables: one definition each, for the terminal and for the report's page."""

from collections.abc import Sequence
from pathlib import Path

from model.estimators import ESTIMATORS
from model.objective import bits_per_dim
from utils.evaluation.collapse import ACTIVE_THRESHOLD, DELTA, EPSILON, Z_95
from utils.evaluation.metrics import Metrics
from utils.evaluation.quality import ImageQuality
from utils.evaluation.record import ScoreRecord
from utils.table import Cell, Column, Table, count_of, integer, number, share, with_error
from utils.terminal import Terminal

NONE = Cell("", 0)
ELBO = "−log p(x | z) + KL, averaged over posterior samples; an upper bound on −log p(x)"


def show_score(terminal: Terminal, record: ScoreRecord, metrics: Metrics | None = None) -> None:
    """Print a score: the table of estimates, image quality, and the table of layers.

    metrics: a user's own, for the titles of their columns.
    """
    terminal.table(score_table(record))
    if record.quality:
        terminal.line(quality_sentence(record.quality))
    terminal.table(layer_table(record, metrics))


def show_finished(terminal: Terminal, path: Path, metrics: Metrics, root: str | None) -> None:
    """Print the score of a run that was finished before, from its results.json.

    root: where the images are that the command names.
    """
    record = ScoreRecord.read(path)
    show_score(terminal, record, metrics)
    before = record.config.get("dataset", {}).get("root")
    if before != root:
        terminal.line(
            f"Note: it was trained on the images in {before}; if those in {root} are others, give "
            "them another name=…."
        )
    terminal.line(f"Finished before, in {path.parent}; task.force=true trains it again.")
    if not (path.parent / "checkpoints" / "best.pth").exists():
        terminal.line("Its best checkpoint is gone, so that nothing but these scores can be used.")
    elif not (path.parent / "report" / "report.json").exists():
        terminal.line(f"It has no report: task=report checkpoint={path.parent} makes one.")


def score_table(record: ScoreRecord) -> Table:
    """−log p(x) by every estimator, with the bound's parts beside it."""
    bound = record.bound
    elbo = ("elbo", integer(1), NONE, NONE, bound.nelbo, bound.nelbo_se)
    rows = [elbo] + [
        (
            estimate.estimator,
            integer(estimate.num_samples),
            integer(estimate.prior_samples) if estimate.prior_samples else NONE,
            number(estimate.ess, 1),
            estimate.nll,
            estimate.nll_se,
        )
        for estimate in record.likelihoods
    ]
    names = [estimate.estimator for estimate in record.likelihoods]
    no_bounds = [name for name in names if name in ESTIMATORS and not ESTIMATORS[name].is_bound]
    protocols = [f"{e.estimator}: {e.protocol}" for e in record.likelihoods if e.protocol]
    return Table(
        f"{record.name}: {bound.images:,} images; {record.protocol}; {record.conditions_text}"
        + "".join(f"; {protocol}" for protocol in protocols),
        [
            Column("split", "the images that were evaluated", text=True, drop=5),
            Column("estimator", "how −log p(x) was estimated", text=True),
            Column("K", "importance samples per image"),
            Column("paths", "diffusion paths behind each context's own weight", page_only=True),
            Column("ESS", "effective sample size of the K weights, mean over images", drop=4),
            Column("nll (nats)", "−log p(x), mean over images ± 95 %"),
            Column("bits/dim", "nats / (dimensions · ln 2)", drop=3),
            Column("recon.", "−log p(x | z), mean over images", unit="nats", drop=1),
            Column("KL", "of all layers, mean over images", unit="nats", drop=2),
            Column("active", "share of all units that are active", unit="%"),
        ],
        [
            [
                Cell(record.split),
                Cell(name),
                samples,
                prior_samples,
                ess,
                with_error(nll, Z_95 * error),
                number(bits_per_dim(nll, record.dims), 4),
                number(bound.reconstruction),
                number(sum(bound.kl)),
                share(bound.active_units),
            ]
            for name, samples, prior_samples, ess, nll, error in rows
        ],
        note="\n".join(
            ["±: 95 %, over images"]
            + [f"{name}: {ESTIMATORS[name].description}" for name in no_bounds]
        ),
    )


def layer_table(
    record: ScoreRecord,
    metrics: Metrics | None = None,
    shapes: Sequence[Sequence[int]] | None = None,
) -> Table:
    """A row per layer, with the record's own metrics in the last columns.

    metrics: their titles and formats. shapes: (w, h, h) of each layer; a record alone has none.
    """
    metrics = metrics or {}
    return Table(
        f"Layers from the top; a unit is active where Var_x(E[z | x]) > {ACTIVE_THRESHOLD:g}, "
        f"from {record.bound.posterior_samples} posterior samples per image",
        [*_LAYER_COLUMNS, *(_own_column(name, metrics) for name in record.metrics)],
        [
            [
                *_layer_cells(record, layer, shapes[layer] if shapes else ()),
                *(
                    _own_cell(name, values[layer], metrics)
                    for name, values in record.metrics.items()
                ),
            ]
            for layer in range(len(record.bound.kl))
        ],
    )


_LAYER_COLUMNS = (
    Column("layer", "0 is the top", text=True),
    Column("", "whether the layer is the context", text=True),
    Column("shape", "channels × height × width", page_only=True),
    Column("units", "latent elements"),
    Column("KL (nats)", "mean over images"),
    Column("±", "95 %, of the KL over images", page_only=True, unit="nats"),
    Column("KL (bits)", "nats / ln 2", page_only=True),
    Column("share of KL", "of the KL of all layers", unit="%", drop=1),
    Column("cumulative", "share of this layer and those above", page_only=True, unit="%"),
    Column("bits/unit", "KL per latent element", drop=2),
    Column("active", "share of units whose posterior mean varies over the images", unit="%"),
    Column("active units", "their number", page_only=True),
    Column("interval", "of their number, conservative, 95 %", page_only=True),
    Column(
        "collapsed",
        f"units whose KL is under {EPSILON:g} nats for at least {1 - DELTA:.0%} of the images",
        page_only=True,
    ),
)


def _layer_cells(record: ScoreRecord, layer: int, shape: Sequence[int]) -> list[Cell]:
    """The cells under _LAYER_COLUMNS."""
    bound = record.bound
    kl, units, active = bound.kl[layer], bound.elements[layer], bound.active[layer]
    low, high = bound.active_low[layer], bound.active_high[layer]
    return [
        integer(layer),
        Cell("context" if record.context and layer == 0 else ""),
        Cell(" × ".join(map(str, shape)), units),
        integer(units),
        number(kl, 3),
        number(Z_95 * bound.kl_se[layer], 3),
        number(bits_per_dim(kl, 1), 3),
        share(bound.kl_share[layer]),
        share(sum(bound.kl_share[: layer + 1])),
        number(bits_per_dim(kl, units), 4),
        share(active / units),
        count_of(active, units),
        Cell(f"{low:,} – {high:,}", low),
        count_of(bound.collapsed[layer], units),
    ]


def _own_cell(name: str, value: float, metrics: Metrics) -> Cell:
    return Cell(metrics[name].text(value) if name in metrics else f"{value:.4g}", value)


def _own_column(name: str, metrics: Metrics) -> Column:
    """The column of a user's metric; under its bare name if the metric itself is not at hand."""
    if name not in metrics:
        return Column(name)
    return Column(metrics[name].title, metrics[name].explanation)


def quality_sentence(quality: ImageQuality) -> str:
    """FID and reconstruction error in words."""
    text = (
        f"Reconstructions on 0 … 1: mean squared error {quality.reconstruction_mse:.5f}, PSNR "
        f"{quality.reconstruction_psnr:.2f} dB."
    )
    if quality.fid is not None:
        text += (
            f" FID {quality.fid:.2f} between {quality.fid_samples:,} samples and as many "
            f"images (Inception weights {quality.fid_weights})."
        )
    return text
