"""The tables of the collapse report's page, from the figures of report.json."""

from itertools import accumulate

from utils.evaluation.collapse import EPSILON, Z_95
from utils.evaluation.information import SATURATION
from utils.report.content import (
    KL_QUANTILES,
    NEGLIGIBLE_NATS,
    Ablation,
    Estimate,
    LayerReport,
    ReportContent,
)
from utils.table import Cell, Column, Table, count_of, integer, number, share, with_error

LISTED_UNITS = 50  # in the table of units; report.json has all


def images_table(content: ReportContent) -> Table:
    """Each layer's KL over the images, and its mixed units."""
    names = ["least", *(f"{q:.0%}" for q in KL_QUANTILES[1:-1]), "most"]
    return Table(
        "KL of each layer by image: the least, quantiles over images, the most",
        [
            Column("layer", "0 is the top", text=True),
            *(Column(name, unit="nats") for name in names),
            Column(f"under {NEGLIGIBLE_NATS:g} nats", "share of images", unit="%"),
            Column("mixed units", "whose KL is under ε for some images only"),
            Column("least: image", "index of the image of least KL among those scored"),
            Column("most: image", "index of the image of most KL"),
        ],
        [
            [
                _layer_cell(layer),
                *map(number, layer.by_image.quantiles),
                share(layer.by_image.negligible),
                count_of(layer.mixed, layer.units),
                integer(layer.by_image.least[0]),
                integer(layer.by_image.most[-1]),
            ]
            for layer in content.layers
        ],
    )


def unit_table(content: ReportContent) -> Table:
    """The units of largest KL."""
    units = [
        (kl, layer, unit) for layer in content.layers for unit, kl in enumerate(layer.per_unit.kl)
    ]
    units.sort(key=lambda entry: -entry[0])
    rows = [_unit_cells(layer, unit) for _, layer, unit in units[:LISTED_UNITS]]
    return Table(
        f"The {len(rows)} units of largest KL, of {len(units):,}; report.json has them all",
        [
            Column("layer", "0 is the top", text=True),
            Column("unit", "channel, row, column"),
            Column("KL", "mean over images", unit="nats"),
            Column("KL ", unit="bits"),
            Column("share", "part of the KL of all layers", unit="%"),
            Column("cumulative", "share of this unit and those of larger KL", unit="%"),
            Column("variance", "Var over x of E[z | x], ± 95 %", unit="of z²"),
            Column(f"KL under {EPSILON:g}", "share of images", unit="%"),
        ],
        rows,
        folded=True,
    )


def _unit_cells(layer: LayerReport, unit: int) -> list[Cell]:
    _, height, width = layer.shape
    channel, position = divmod(unit, height * width)
    figures = layer.per_unit
    return [
        _layer_cell(layer),
        Cell(f"{channel}, {position // width}, {position % width}", unit),
        number(figures.kl[unit], 3),
        number(figures.kl_bits[unit], 3),
        share(figures.kl_share[unit]),
        share(figures.kl_cumulative_share[unit]),
        with_error(figures.variance[unit], Z_95 * figures.variance_se[unit], 3),
        share(figures.quiet_share[unit]),
    ]


def kept_table(content: ReportContent) -> Table:
    """The bound with only the top layers kept."""
    return Table(
        "The top k layers from the posterior, the rest from the prior",
        [Column("k", "layers kept", text=True), *_ABLATION_COLUMNS],
        [[integer(row.kept), *_ablation_cells(row)] for row in content.top_kept],
    )


def without_table(content: ReportContent) -> Table:
    """The bound with one layer replaced."""
    return Table(
        "One layer from its prior, the others from their posteriors",
        [Column("layer", "the one replaced", text=True), *_ABLATION_COLUMNS],
        [[_layer_cell(layer), *_ablation_cells(layer.without)] for layer in content.layers],
    )


_ABLATION_COLUMNS = (
    Column("reconstruction", "−log p(x | z): the distortion", unit="nats"),
    Column("rate", "KL of the layers kept", unit="nats"),
    Column("−ELBO", "reconstruction + rate", unit="nats"),
    Column("rise", "of −ELBO over the whole model's, paired over images, ± 95 %", unit="nats"),
)


def _ablation_cells(row: Ablation) -> list[Cell]:
    rise = with_error(row.lost, Z_95 * row.lost_se)
    return [number(row.reconstruction), number(row.rate), number(row.nelbo), rise]


def information_table(content: ReportContent) -> Table:
    """Mutual information and residuals."""
    cumulative = accumulate(layer.kl for layer in content.layers)
    return Table(
        f"Information from {content.information_images} images",
        [
            Column("layer", "0 is the top", text=True),
            Column("I(x; z top … l)", "this layer and those above, ± 95 %", unit="nats"),
            Column("added", "by this layer, given those above, ± 95 %", unit="nats"),
            Column("KL, cumulative", "of this layer and those above, all images", unit="nats"),
            Column("ceiling", f"reached: within {SATURATION:g} nats of log N; –: it isn't"),
            Column("residual", "mean squared standardised latent, ± 95 %; 1 is the prior's"),
        ],
        [
            [
                _layer_cell(layer),
                _estimate(layer.information),
                _estimate(layer.information_added),
                number(kl, 3),
                Cell("reached" if layer.saturated else "–", float(layer.saturated)),
                _estimate(layer.residual),
            ]
            for layer, kl in zip(content.layers, cumulative, strict=True)
        ],
    )


def _estimate(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell("–", 0)
    return with_error(estimate.value, Z_95 * estimate.se, 3)


def _layer_cell(layer: LayerReport) -> Cell:
    return Cell(layer.name, layer.layer)
