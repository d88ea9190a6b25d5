"""The probes in the report's page: what simple classifiers tell by the layers' posterior means."""

from utils.evaluation.collapse import Z_95
from utils.evaluation.probes import FOLDS, NEIGHBOURS, Accuracy, ProbeRow, Probes
from utils.report.content import LayerReport, ReportContent
from utils.report.page import Section
from utils.table import Cell, Column, Table, signed


def probes_section(content: ReportContent) -> Section:
    """The table and the layers that help though they are passive; or why there are no probes."""
    probes = content.probes
    if probes is None:
        return Section("Probes", paragraphs=[f"No probes: {content.without_probes}"])
    return Section(
        "Probes",
        paragraphs=[
            f"Of {probes.images:,} images, of {probes.classes} classes, how many simple "
            "classifiers tell right by the posterior means of the layers, each given the means "
            "above it (draws, of a model that gives no means): a linear one, and a majority of the "
            f"{NEIGHBOURS} nearest neighbours; by {FOLDS}-fold cross-validation, with 95 % "
            "intervals over images. The untrained model has the same architecture; its DCT "
            "context, which is not learned, is the same."
        ],
        points=passive_layers(content),
        tables=[probe_table(probes, [layer.name for layer in content.layers])],
    )


def passive_layers(content: ReportContent) -> list[str]:
    """A sentence on each layer whose figures are small and that helps all the same."""
    sentences = []
    for layer, gain in zip(content.layers, content.probes.gains, strict=True):
        if layer.passive and gain is not None and gain.helps:
            sentences.append(
                f"{_called(layer)} is passive by its KL or its units ({layer.kl:.2f} nats, "
                f"{layer.active:,} of {layer.units:,} units active), and still adds "
                f"{100 * gain.value:.1f} ± {100 * Z_95 * gain.se:.1f} points to what the layers "
                "above it tell."
            )
    if not sentences and any(layer.passive for layer in content.layers[1:]):
        return ["No passive layer adds to what the layers above it tell."]
    return sentences


def _called(layer: LayerReport) -> str:
    return "The context" if layer.context else f"Layer {layer.layer}"


def probe_table(probes: Probes, layers: list[str]) -> Table:
    """Rows: each layer alone, each with those above it, pixels, chance."""
    rows = [_cells(f"layer {n}", row, None) for n, row in zip(layers, probes.alone, strict=True)]
    together = list(zip(layers, probes.cumulated, probes.gains, strict=True))
    rows += [_cells(f"layers 0 … {n}", row, gain) for n, row, gain in together[1:]]
    rows.append(_cells("pixels", probes.pixels, None))
    rows.append([Cell("chance"), *_accuracy(probes.chance), *[NONE] * 6])
    return Table(
        "Accuracy by the posterior means of layers, alone and from the top down",
        [
            Column("features", "0 is the top", text=True),
            Column("linear", "logistic regression"),
            Column("95 %", "its interval"),
            Column("added", "points of linear accuracy beyond the layers above, paired"),
            Column("± (95 %)", "its interval"),
            Column("neighbours", f"majority of the {NEIGHBOURS} nearest"),
            Column("95 % ", "its interval"),
            Column("untrained", "linear, by the same layers with fresh weights"),
            Column("95 %  ", "its interval"),
        ],
        rows,
    )


NONE = Cell("–", 0)


def _cells(name: str, row: ProbeRow, gain) -> list[Cell]:
    added = [NONE, NONE]
    if gain is not None:
        added = [
            signed(100 * gain.value, 1),
            Cell(f"{100 * Z_95 * gain.se:.1f}", gain.se),
        ]
    return [
        Cell(name),
        *_accuracy(row.linear),
        *added,
        *_accuracy(row.neighbours),
        *(_accuracy(row.untrained) if row.untrained else (NONE, NONE)),
    ]


def _accuracy(one: Accuracy) -> tuple[Cell, Cell]:
    interval = f"{one.low:.1%} – {one.high:.1%}"
    return Cell(f"{one.value:.1%}", one.value), Cell(interval, one.low)
