"""The page of task=ood: a table of scores, and their histograms."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.evaluation.ood import Detection, Interval, OodRecord, Score
from utils.evaluation.record import checkpoint_name
from utils.files import write_arrays, write_json
from utils.report.drawing import Drawing, save, verbatim
from utils.report.page import Section, write_page
from utils.report.panels import ACCENT, SECOND, small_multiples
from utils.table import Cell, Column, Table, number

BINS = 40


def write_ood(record: OodRecord, scores: Sequence[Score], folder: Path) -> Path:
    """ood.html with ood.json, the histograms, and ood.npz of every image's scores; the page."""
    drawing = draw_histograms(record, scores)
    save(drawing, folder)
    arrays = {
        f"{side}_{score.name}_{score.prior or ''}".rstrip("_"): getattr(score, side).numpy()
        for score in scores
        for side in ("inside", "outside")
    }
    write_arrays(folder / "ood.npz", arrays)
    write_json(folder / "ood.json", record.model_dump())
    return write_page(
        folder / "ood.html",
        f"{record.name}: {record.inside} and {record.outside}",
        [
            f"{record.images:,} {record.split} images of each; {record.samples} posterior "
            f"sample(s) per image; noise_seed {record.noise_seed}.",
            f"Checkpoint: {checkpoint_name(record.checkpoint, record.checkpoint_digest)}.",
            "Intervals are 95 %, by a bootstrap over the images of both sides "
            f"({record.replicates:,} replicates).",
        ],
        [
            Section("Scores", paragraphs=EXPLANATION, tables=[ood_table(record)]),
            Section("Histograms", drawings=[(drawing, CAPTION)]),
        ],
    )


CAPTION = (
    "The further apart, the better the score tells them. The outermost bars also hold what is "
    "beyond."
)
EXPLANATION = (
    "Every score is read as “the higher, the more foreign”. An AUROC under 0.5 says that it is the "
    "other way round: the foreign images look more familiar than the model's own.",
    "PNG bits are the size of the compressed image, and know nothing of the model: a score that is "
    "no better has only told simple images from complex ones. −ELBO is the plain likelihood's "
    "bound. LLR>k is the bound less the one with the k lowest layers drawn from their priors "
    "(Havtorn et al. 2021); “mode” takes the priors' means in place of draws, as they do.",
)


def ood_table(record: OodRecord) -> Table:
    """A row per score."""
    return Table(
        f"{record.name}: images of {record.outside} told from those of {record.inside}, "
        f"{record.images:,} of each",
        [
            Column("score", "the higher, the more foreign", text=True),
            Column("prior", "how layers that are not inferred are drawn", text=True),
            Column("inferred", "layers whose latents come from the image; 0 is the top", text=True),
            Column("AUROC", "0.5 by chance"),
            Column("95 % ", "its interval"),
            Column("AP", "average precision; 0.5 by chance"),
            Column("95 %  ", "its interval", page_only=True),
            Column("FPR80", "share of false positives where 80 % are told; 0.8 by chance"),
            Column("95 %   ", "its interval", page_only=True),
            Column(record.inside, "the score's mean", page_only=True),
            Column(record.outside + " ", "the score's mean", page_only=True),
        ],
        [_row(one, len(record.layers)) for one in record.detections],
    )


def _row(one: Detection, layers: int) -> list[Cell]:
    top = layers - (one.lowest or 0)
    names = {0: "none", 1: "0"}.get(top, f"0 … {top - 1}")
    return [
        Cell(one.score, one.lowest),
        Cell(one.prior or "–"),
        Cell("–" if one.score == "PNG bits" else names, top),
        *_interval(one.auroc),
        *_interval(one.average_precision),
        *_interval(one.fpr80),
        number(one.inside),
        number(one.outside),
    ]


def _interval(one: Interval) -> tuple[Cell, Cell]:
    return number(one.value, 3), Cell(f"{one.low:.3f} – {one.high:.3f}", one.low)


def draw_histograms(record: OodRecord, scores: Sequence[Score]) -> Drawing:
    """A panel per score, both sides."""

    def paint(figure: Figure, panel: list[Axes]) -> None:
        for axes, score, one in zip(panel, scores, record.detections, strict=False):
            _paint_score(axes, score)
            name = verbatim(f"{score.name}{', mode' * (score.prior == 'mode')}")
            axes.set_title(f"{name}\nAUROC {one.auroc.value:.3f}", fontsize=8)
        figure.supylabel("share of the images", fontsize=9)

    best = max(record.detections, key=lambda one: one.auroc.value)
    text = (
        f"{best.score} tells images of {record.outside} from those of {record.inside} best: AUROC "
        f"{best.auroc.value:.3f}, by chance 0.5."
    )
    title = f"Scores of {record.inside} (filled) and {record.outside} (line)"
    return small_multiples("histograms", title, text, paint, len(scores), shared=False)


def _paint_score(axes: Axes, score: Score) -> None:
    both = np.concatenate([score.inside.numpy(), score.outside.numpy()])
    edges = np.linspace(*np.quantile(both, [0.005, 0.995]), BINS + 1)
    if edges[0] == edges[-1]:
        edges = np.linspace(edges[0] - 0.5, edges[0] + 0.5, BINS + 1)
    inside, outside = (
        np.histogram(values.numpy().clip(edges[0], edges[-1]), edges)[0] / len(values)
        for values in (score.inside, score.outside)
    )
    axes.stairs(inside, edges, fill=True, color=ACCENT, alpha=0.7)
    axes.stairs(outside, edges, color=SECOND, lw=1.4)
    axes.set_xlabel("bits" if score.name == "PNG bits" else "nats", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.locator_params(nbins=3)
