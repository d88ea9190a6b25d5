"""The collapse report: what each latent layer carries, as a page, its drawings and a JSON file.

report/report.html   report/report.json (every figure of the page)   report/*.png
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from utils.evaluation.collapse import (
    ACTIVE_THRESHOLD,
    DELTA,
    EPSILON,
    EPSILONS,
    THRESHOLDS,
    Z_95,
    CollapseReport,
    Units,
    mean_and_error,
)
from utils.evaluation.information import (
    Aggregate,
    Intervention,
    aggregate_posterior,
    interventions,
    plans,
)
from utils.evaluation.scoring import Score
from utils.files import write_json
from utils.processes.job import Job
from utils.report import pictures, plots
from utils.report.collapse_page import lead, sections
from utils.report.drawing import Drawing, save
from utils.report.during_training import PICTURED
from utils.report.page import write_page

NATS_PER_BIT = math.log(2.0)
FEW = 0.1  # share of active units under which a layer has mostly collapsed
LITTLE = 0.02  # share of the KL
SEEN = 0.005  # nats that two decimals show
COST = 0.1  # nats without which an inactive layer's KL is not worth a word


def write_report(
    model: LadderVAE,
    score: Score,
    settings: dict,
    batches: EvaluationBatches,
    folder: Path,
    job: Job,
) -> list[Path]:
    """Measure what `score` has not, and write the report; the PNG files' paths.

    Call it on every process; the main one writes.
    """
    terminal = job.terminal
    seed, split = settings["train"]["seed"], score.record["split"]
    with terminal.bar(f"{split}: without each layer", len(batches.ids)) as bar:
        found = interventions(model, batches, seed, bar.count)
    if not job.is_main:
        return []
    some = batches.first(settings["task"]["mi_images"])
    with terminal.bar(f"{split}: information", len(some)) as bar:
        aggregate = aggregate_posterior(model, some, seed, bar.count)
    content = contents(score, found, aggregate)
    drawings = draw(model, score, content, aggregate, batches.first(PICTURED), seed)
    pictures = [save(drawing, folder) for drawing in drawings.values()]
    write_json(folder / "report.json", content)
    page = write_page(
        folder / "report.html",
        f"{content['name']}: what each layer carries",
        lead(content),
        sections(content, drawings),
    )
    terminal.line(f"The collapse report is {page}")
    return pictures


def contents(
    score: Score, found: dict[tuple[bool, ...], Intervention], aggregate: Aggregate
) -> dict:
    """Every figure of the report, as plain containers."""
    record, bound = score.record, score.record["bound"]
    shares = CollapseReport(**bound).kl_share
    layers = score.collapse.layers
    whole = found[(True,) * len(layers)].nelbo
    per_unit = _per_unit(layers)
    top = [_kept(found[plan], whole) for plan in plans(len(layers))[: len(layers) + 1]]
    rows = []
    for layer, units in enumerate(layers):
        kl = bound["kl"][layer]
        row = {
            "layer": layer,
            "context": record["context"] and layer == 0,
            "shape": list(units.shape),
            "units": bound["elements"][layer],
            "kl": kl,
            "kl_se": bound["kl_se"][layer],
            "kl_bits": kl / NATS_PER_BIT,
            "kl_share": shares[layer],
            "kl_cumulative_share": sum(shares[: layer + 1]),
            "active": bound["active"][layer],
            "active_low": bound["active_low"][layer],
            "active_high": bound["active_high"][layer],
            "collapsed": bound["collapsed"][layer],
            "without": _without(found, whole, layer),
            "information": _pair(aggregate.information[layer]),
            "information_added": _pair(aggregate.added[layer]),
            "saturated": aggregate.saturated(layer),
            "residual": aggregate.residual[layer] and _pair(aggregate.residual[layer]),
            "histogram": vars(aggregate.histograms[layer]),
            "active_by_threshold": [list(units.active(t)) for t in THRESHOLDS],
            "collapsed_by_epsilon": [units.collapsed(i) for i in range(len(EPSILONS))],
            "per_unit": per_unit[layer],
        }
        rows.append({**row, "verdict": verdict(row)})
    return {
        **record,
        "active_threshold": ACTIVE_THRESHOLD,
        "epsilon": EPSILON,
        "delta": DELTA,
        "thresholds": list(THRESHOLDS),
        "epsilons": list(EPSILONS),
        "information_images": aggregate.images,
        "information_ceiling": aggregate.ceiling,
        "top_kept": top,
        "layers": rows,
    }


def _kept(one: Intervention, whole: Tensor) -> dict:
    """The bound with the top layers kept, and what it loses."""
    lost, error = mean_and_error(one.nelbo - whole)
    nelbo, nelbo_se = mean_and_error(one.nelbo)
    reconstruction, reconstruction_se = mean_and_error(one.reconstruction)
    return {
        "kept": sum(one.kept),
        "nelbo": nelbo,
        "nelbo_se": nelbo_se,
        "reconstruction": reconstruction,
        "reconstruction_se": reconstruction_se,
        "lost": lost,
        "lost_se": error,
    }


def _without(found: dict[tuple[bool, ...], Intervention], whole: Tensor, layer: int) -> dict:
    """What the bound loses without one layer, paired over the images."""
    count = len(next(iter(found)))
    row = _kept(found[tuple(other != layer for other in range(count))], whole)
    return {key: value for key, value in row.items() if key != "kept"}


def _per_unit(layers: Sequence[Units]) -> list[dict[str, list[float]]]:
    """Each layer's units, in the order of (w, h, h) flattened.

    The cumulative share is of the unit and of all units, of any layer, whose KL is larger.
    """
    kl = torch.cat([units.kl for units in layers])
    whole = kl.sum().clamp(min=torch.finfo(kl.dtype).tiny)
    order = kl.argsort(descending=True, stable=True)
    cumulative = torch.empty_like(kl)
    cumulative[order] = kl[order].cumsum(0) / whole
    sizes = [units.kl.numel() for units in layers]
    quiet = EPSILONS.index(EPSILON)
    return [
        {
            "kl": _short(units.kl),
            "kl_bits": _short(units.kl / NATS_PER_BIT),
            "kl_share": _short(units.kl / whole),
            "kl_cumulative_share": _short(above),
            "mean": _short(units.mean),
            "variance": _short(units.variance),
            "variance_se": _short(units.variance_se),
            "quiet_share": _short(units.quiet[quiet]),
        }
        for units, above in zip(layers, cumulative.split(sizes), strict=True)
    ]


def _short(values: Tensor) -> list[float]:
    """To six digits: there may be a hundred thousand units."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _pair(found: tuple[float, float]) -> dict:
    return {"value": found[0], "se": found[1]}


def verdict(row: dict) -> str:
    """One sentence on a layer."""
    name = "The context" if row["context"] else f"Layer {row['layer']}"
    units, active, kl = row["units"], row["active"], row["kl"]
    counted = f"{kl:.2f} nats, {active:,} of {units:,} units active"
    if active == 0 and kl < max(COST, units * EPSILON):
        said = f"{name} has collapsed: {counted}"
    elif active == 0:
        said = f"{name} costs {kl:.2f} nats yet has none of its {units:,} units active"
    elif active < FEW * units:
        said = f"{name} has mostly collapsed: {counted}"
    else:
        use = "carries little" if row["kl_share"] < LITTLE else "is in use"
        said = f"{name} {use}: {counted}, {row['kl_share']:.1%} of the KL"
    lost, error = row["without"]["lost"], Z_95 * row["without"]["lost_se"]
    if abs(lost) <= max(error, SEEN):
        return f"{said}; without it the bound is the same (by {lost:+.2f} ± {error:.2f} nats)."
    change = "worse" if lost > 0 else "better"
    return f"{said}; without it the bound is {abs(lost):.2f} ± {error:.2f} nats {change}."


def draw(
    model: LadderVAE, score: Score, content: dict, aggregate: Aggregate, x: Tensor, seed: int
) -> dict[str, Drawing]:
    """All drawings by name; x (B, C, H, W): the images of the pictures."""
    rows, layers = content["layers"], score.collapse.layers
    shares = [
        [row[key] / row["units"] for key in ("active", "active_low", "active_high")] for row in rows
    ]
    lost = [
        {
            "layer": row["layer"],
            "lost": row["without"]["lost"],
            "lost_interval": Z_95 * row["without"]["lost_se"],
        }
        for row in rows
    ]
    kl = [row["kl"] for row in rows]
    drawings = [
        plots.draw_layers(kl, [Z_95 * row["kl_se"] for row in rows], shares),
        plots.draw_active_curve(layers),
        plots.draw_collapse_curve(layers),
        plots.draw_kl_maps(layers, content["context"]),
        plots.draw_interventions(content["top_kept"], lost),
        plots.draw_information(aggregate, kl),
        plots.draw_aggregates(aggregate),
        *pictures.draw_model(model, x, seed),
        pictures.draw_traversals(model, x, layers),
    ]
    return {drawing.name: drawing for drawing in drawings if drawing}
