"""The collapse report's page: its sections and tables, from the figures of report.json."""

from collections.abc import Mapping
from itertools import accumulate

from model.estimators import Estimator
from utils.evaluation.collapse import ACTIVE_THRESHOLD, DELTA, EPSILON, MIXED, Z_95
from utils.evaluation.information import SATURATION
from utils.evaluation.metrics import Metrics
from utils.report.content import (
    KL_QUANTILES,
    NEGLIGIBLE_NATS,
    Ablation,
    Estimate,
    LayerReport,
    ReportContent,
)
from utils.report.drawing import Drawing
from utils.report.glossary import GLOSSARY
from utils.report.page import Section
from utils.report.probes_section import probes_section
from utils.report.tables import ELBO, layer_table, score_table
from utils.table import Cell, Column, Table, count_of, integer, number, share, with_error

LISTED_UNITS = 50  # in the table of units; report.json has all


def lead(content: ReportContent) -> list[str]:
    """The page's first paragraphs: what was evaluated, and how."""
    return [
        f"{content.bound.images:,} {content.split} images of {content.dataset} "
        f"({content.dims} dimensions); {content.protocol}.",
        f"Checkpoint: {content.checkpoint_name}; train.seed {content.seed}.",
        f"KL and active units are from {content.bound.posterior_samples} posterior samples per "
        "image. Every ± and every interval is 95 %, over images.",
    ]


def sections(
    content: ReportContent,
    drawings: Mapping[str, Drawing],
    metrics: Metrics,
    estimators: Mapping[str, Estimator],
) -> list[Section]:
    """The page's sections, in reading order; drawings by name.

    metrics: a user's own; estimators: those of the score.
    """
    described = {name: estimator.description for name, estimator in estimators.items()}
    return [
        Section("Verdict", points=[layer.verdict for layer in content.layers]),
        Section(
            "Likelihood",
            points=[f"{name}: {text}" for name, text in {"elbo": ELBO, **described}.items()],
            tables=[score_table(content)],
        ),
        _layers_section(content, drawings, metrics),
        _units_section(content, drawings),
        _ablation_section(content, drawings),
        _images_section(content, drawings),
        probes_section(content),
        *([_information_section(content, drawings)] if content.information_images else []),
        Section("Pictures", drawings=_pick(drawings, _PICTURES)),
        Section("Glossary", terms=GLOSSARY),
    ]


def _layers_section(
    content: ReportContent, drawings: Mapping[str, Drawing], metrics: Metrics
) -> Section:
    shapes = [layer.shape for layer in content.layers]
    captions = {
        "layers": "Dots: KL per image and share of active units, with intervals; hollow where the "
        "layer has collapsed."
    }
    return Section(
        "Layers",
        tables=[layer_table(content, metrics, shapes)],
        drawings=_pick(drawings, captions),
    )


def _units_section(content: ReportContent, drawings: Mapping[str, Drawing]) -> Section:
    captions = {
        "active_units": "Solid: the layer's units, with an interval; dashed: all units.",
        "collapsed_units": "Solid: the layer's units; dashed: all units.",
        "kl_maps": "Rows and columns count from 0. The positions of a DCT context are frequencies, "
        "the lowest at the upper left.",
    }
    return Section(
        "Units",
        paragraphs=[
            "A unit is one element of a latent. It is active where the mean of its posterior, "
            "the layers above marginalised, varies over the images by more than "
            f"{ACTIVE_THRESHOLD:g}; it is collapsed where its KL is under ε for at least "
            f"{1 - DELTA:.0%} of the images."
        ],
        drawings=_pick(drawings, captions),
        tables=[unit_table(content)],
    )


def _ablation_section(content: ReportContent, drawings: Mapping[str, Drawing]) -> Section:
    captions = {
        "interventions": "First: only the top layers kept. Second: one layer drawn from its prior.",
        "rate_distortion": "A number beside a point is how many layers are kept. Where a step goes "
        "right without going down, the layer costs nats and tells nothing of the image.",
    }
    return Section(
        "Layer ablation",
        paragraphs=[
            "Layers are drawn from their priors instead of inferred from the image. The posteriors "
            "of the layers below depend on that draw and may compensate for it. The reconstruction "
            "plus the KL of the layers kept (one sample per image) bounds −log p(x) in every row."
        ],
        tables=[kept_table(content), without_table(content)],
        drawings=_pick(drawings, captions),
    )


def _images_section(content: ReportContent, drawings: Mapping[str, Drawing]) -> Section:
    captions = {"images_by_kl": "Five of least KL and five of most; report.json has their indices."}
    return Section(
        "Images by KL",
        paragraphs=[
            "A layer may be in use for some images and collapsed for others: its KL by image, and "
            f"the share of images with less than {NEGLIGIBLE_NATS:g} nats. A mixed unit's KL is "
            f"under {EPSILON:g} nats for some images, and over it for others, at least "
            f"{MIXED:.0%} of them each way."
        ],
        tables=[images_table(content)],
        drawings=_pick(drawings, captions),
    )


def _information_section(content: ReportContent, drawings: Mapping[str, Drawing]) -> Section:
    captions = {
        "information": "Of each layer and those above it together.",
        "aggregates": "Where filled bars leave the line, the prior gives values the wrong "
        "probability.",
    }
    return Section(
        "Information",
        paragraphs=[
            f"For x drawn from {content.information_images} images, the mutual information between "
            "x and the layers down to each one. It is at most log N = "
            f"{content.information_ceiling:.2f} nats; near that it says only that the images are "
            "identified. KL less information is the KL of the aggregate posterior from the prior. "
            f"One draw each of {content.information_queries:,} of these images.",
            f"Within {SATURATION:g} nats of log N the ceiling is reached: the layers may know more "
            "of an image than so few images can show.",
            "The residual is E[((z − μ)/σ)²] under the prior's μ and σ: 1 where the aggregate "
            "posterior has the prior's spread, more where the prior would seldom draw it.",
        ],
        tables=[information_table(content)],
        drawings=_pick(drawings, captions),
    )


_PICTURES = {
    "reconstructions": "",
    "reconstructions_top": "",
    "context": "",
    "diffusion": "",
    "samples": "A column is the same draw at every temperature.",
    "samples_fixed_top": "The variation that remains is what the lower layers add.",
    "traversals": "Layers above keep the image's values, layers below take their priors' means.",
}


def _pick(
    drawings: Mapping[str, Drawing], captions: Mapping[str, str]
) -> list[tuple[Drawing, str]]:
    """The drawings that exist, with their captions."""
    return [(drawings[name], caption) for name, caption in captions.items() if name in drawings]


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
            Column("least: image", "index of the image of least KL in its split"),
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
