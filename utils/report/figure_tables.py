"""Tables of a score for trackers: a row per layer, and a row per image with its picture.

thumbnails.npz in a run's folder has what the second needs beside the scores: ids (n,), images
(n, H, W) or (n, H, W, 3) uint8, and the digest of the split that they are of.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from datasets.loaders import EvaluationBatches, evenly_spaced
from utils.errors import ConfigError
from utils.evaluation.compared_runs import read_run
from utils.evaluation.record import ScoreRecord
from utils.files import read_arrays, write_arrays
from utils.report.content import Estimate, LayerReport, ReportContent
from utils.runs.folder import RESULTS
from utils.table import Table
from utils.tracking.sinks import FigureTable

IMAGES = 1000  # rows of a table of images, evenly spaced over the split
ABSENT = ("", "–")  # texts of cells without a figure, which sort by some number all the same
PIXELS = 64  # the longer side of a thumbnail at most
AT_ONCE = 100  # images shrunk
THUMBNAILS = "thumbnails.npz"


def tables_in(folder: Path) -> list[FigureTable]:
    """The tables of a finished run, from the files in its folder."""
    run = read_run(folder / f"{RESULTS}.json")
    record = report_of(run.record, folder / "report" / "report.json")
    try:
        thumbnails = read_arrays(folder / THUMBNAILS)
    except ValueError:  # of an earlier version there are none
        thumbnails = {}
    return score_tables(record, run.per_image, thumbnails)


def shown_table(name: str, table: Table) -> FigureTable:
    """A table of a page: numbers where all texts of a column are numbers, else the texts."""
    columns: dict[str, list] = {}
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        title = column.name.strip()
        if title in columns:  # pages tell them apart by the columns between which they stand
            title = f"{title} ({index})"
        numeric = all(cell.text in ABSENT or _is_number(cell.text) for cell in cells)
        values = [None if cell.text in ABSENT else cell.value for cell in cells]
        columns[title] = values if numeric else [cell.text for cell in cells]
    return FigureTable(
        name, list(columns), [list(row) for row in zip(*columns.values(), strict=True)]
    )


def _is_number(text: str) -> bool:
    try:
        float(text.replace("−", "-").replace(",", "").removesuffix("%").strip())
    except ValueError:
        return False
    return True


def report_of(record: ScoreRecord, path: Path) -> ScoreRecord:
    """The report's content, where it is whole and of the same scores, else the record itself."""
    try:
        content = ReportContent.read(path)
    except (FileNotFoundError, ConfigError):
        return record
    same = content.bound == record.bound and content.images_digest == record.images_digest
    return content if same else record


def has_report(record: ScoreRecord, folder: Path) -> bool:
    """Whether a report's folder has its page, and its content is of these scores."""
    content = report_of(record, folder / "report.json")
    return isinstance(content, ReportContent) and (folder / "report.html").exists()


def score_tables(
    record: ScoreRecord, per_image: Mapping[str, np.ndarray], thumbnails: Mapping[str, np.ndarray]
) -> list[FigureTable]:
    """<split>_layers and, where there are thumbnails of these images, <split>_images."""
    rows = [_layer_row(record, layer) for layer in range(len(record.bound.kl))]
    tables = [FigureTable.of(f"{record.split}_layers", rows)]
    if str(thumbnails.get("digest")) == record.images_digest:
        rows = [
            _image_row(id_, image, per_image)
            for id_, image in zip(thumbnails["ids"].tolist(), thumbnails["images"], strict=True)
        ]
        tables.append(FigureTable.of(f"{record.split}_images", rows))
    return tables


def thumbnails_of(batches: EvaluationBatches, digest: str) -> dict[str, np.ndarray]:
    """Up to IMAGES images of a split at PIXELS at most, their indices, and the split's digest."""
    ids = evenly_spaced(len(batches.images), IMAGES)
    images = torch.cat([_shrunk(batches.at(part)) for part in ids.split(AT_ONCE)])
    return {"ids": ids.numpy(), "images": images.numpy(), "digest": np.array(digest)}


def write_thumbnails(batches: EvaluationBatches, digest: str, folder: Path) -> None:
    """Write thumbnails.npz."""
    write_arrays(folder / THUMBNAILS, thumbnails_of(batches, digest))


def _shrunk(x: torch.Tensor) -> torch.Tensor:
    """Images (n, C, H, W) in [−1, 1] as thumbnails (n, h, w) or (n, h, w, 3), uint8."""
    factor = math.ceil(max(x.shape[2:]) / PIXELS)
    if factor > 1:
        x = functional.interpolate(x, [side // factor for side in x.shape[2:]], mode="area")
    levels = ((x.cpu() + 1.0) * 127.5).round().clamp(0, 255).byte()
    return levels[:, 0] if x.shape[1] < 3 else levels[:, :3].permute(0, 2, 3, 1)


def _image_row(id_: int, image: np.ndarray, per_image: Mapping[str, np.ndarray]) -> dict:
    """An image's figures in nats: −log p(x) by estimator first, KL per layer last."""
    row = {"id": id_, "image": image}
    for name in sorted(per_image, key=lambda name: (not name.startswith("nll"), name == "kl")):
        value = per_image[name][id_]
        if value.ndim == 0:
            row[name] = float(value)
        else:
            row |= {f"{name}_{layer}": float(each) for layer, each in enumerate(value)}
    return row


def _layer_row(record: ScoreRecord, layer: int) -> dict:
    """A layer's figures: those of every score, and those of the report where there is one."""
    bound = record.bound
    row = {
        "layer": layer,
        "units": bound.elements[layer],
        "kl": bound.kl[layer],
        "kl_se": bound.kl_se[layer],
        "kl_share": bound.kl_share[layer],
        "active": bound.active[layer],
        "active_low": bound.active_low[layer],
        "active_high": bound.active_high[layer],
        "active_share": bound.active_per_layer[layer],
        "collapsed": bound.collapsed[layer],
    }
    if isinstance(record, ReportContent):
        row |= _reported(record.layers[layer]) | _probed(record, layer)
    for name, figures in record.metrics.items():  # a user's own
        row[f"{name} (own)" if name in row else name] = figures[layer]
    return row


def _reported(layer: LayerReport) -> dict:
    return {
        "name": layer.name,
        "shape": "×".join(map(str, layer.shape)),
        "mixed": layer.mixed,
        "negligible_share": layer.by_image.negligible,
        "lost_without": layer.without.lost,
        "lost_without_se": layer.without.lost_se,
        **_estimate("information", layer.information),
        **_estimate("information_added", layer.information_added),
        "verdict": layer.verdict,
    }


def _estimate(name: str, estimate: Estimate | None) -> dict[str, float | None]:
    both = (None, None) if estimate is None else (estimate.value, estimate.se)
    return dict(zip((name, f"{name}_se"), both, strict=True))


def _probed(content: ReportContent, layer: int) -> dict[str, float]:
    """Linear accuracy by this layer, and by it and those above."""
    if content.probes is None:
        return {}
    alone, above = content.probes.alone[layer], content.probes.cumulated[layer]
    return {"accuracy": alone.linear.value, "accuracy_from_top": above.linear.value}
