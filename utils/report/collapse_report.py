"""The collapse report: what each latent layer carries, as a page, its drawings and a JSON file.

report/report.html   report/report.json (every figure of the page)   report/*.png
"""

from pathlib import Path

import torch
from torch import Tensor

from datasets.loaders import EvaluationBatches, evenly_spaced
from model import LadderVAE
from model.latents import LatentAccess
from utils.evaluation.information import aggregate_posterior, interventions
from utils.evaluation.probes import Probes, probe, untrained_like
from utils.evaluation.scoring import Score
from utils.files import write_json
from utils.processes.job import Job
from utils.report import layer_plots, pictures, plots
from utils.report.collapse_page import lead, sections
from utils.report.content import ReportContent, report_content
from utils.report.drawing import Drawing, save
from utils.report.page import write_page
from utils.report.run_figures import PICTURED
from utils.settings.schema import Settings
from utils.terminal import Terminal


def write_report(
    model: LadderVAE,
    score: Score,
    settings: Settings,
    batches: EvaluationBatches,
    folder: Path,
    job: Job,
) -> list[Path]:
    """Measure what `score` does not contain, write the report, and return the PNG files' paths.

    Collective: call it on every process; the main one writes, the others return an empty list.
    """
    terminal, seed, split = job.terminal, settings.task.noise_seed, score.record.split
    with terminal.bar(f"{split}: layer ablation", len(batches.ids)) as bar:
        ablated = interventions(model, batches, seed, bar.count)
    if not job.is_main:
        return []
    subset, queries = batches.examples(settings.task.mi_images), settings.task.mi_queries
    pairs = len(subset) * min(queries or len(subset), len(subset))
    with terminal.bar(f"{split}: information", pairs) as bar:
        aggregate = aggregate_posterior(model, subset, seed, bar.count, queries)
    probes = measure_probes(model, settings, batches, job)
    content = report_content(score, ablated, aggregate, probes, model.layer_names)
    return write_pages(model, score, content, batches, folder, seed, terminal)


def write_pages(
    model: LatentAccess,
    score: Score,
    content: ReportContent,
    batches: EvaluationBatches,
    folder: Path,
    seed: int,
    terminal: Terminal,
) -> list[Path]:
    """The drawings, report.json and report.html; returns the PNG files' paths."""
    drawings = draw(model, score, content, batches, seed)
    paths = [save(drawing, folder) for drawing in drawings.values()]
    write_json(folder / "report.json", content.to_json())
    page = write_page(
        folder / "report.html",
        f"{content.name}: what each layer carries",
        lead(content),
        sections(content, drawings, score.metrics, score.estimators),
    )
    terminal.line(f"The collapse report is {page}")
    return paths


def measure_probes(
    model: LadderVAE, settings: Settings, batches: EvaluationBatches, job: Job
) -> Probes | str:
    """The probes of task.probe_images images, or why there are none."""
    count = settings.task.probe_images
    if count == 0:
        return "task.probe_images=0 asks for none."
    ids = evenly_spaced(len(batches.images), count)
    labels = None if batches.labels is None else batches.labels[ids]
    with job.terminal.bar("probes", model.num_latents) as bar:
        fresh = untrained_like(model, settings)
        return probe(model, fresh, batches.at(ids), labels, bar.count)


def draw(
    model: LatentAccess,
    score: Score,
    content: ReportContent,
    batches: EvaluationBatches,
    seed: int,
) -> dict[str, Drawing]:
    """All drawings by name; batches: the images that were scored."""
    x, informed = batches.examples(PICTURED), content.information_images > 0
    drawings = [
        plots.draw_layers(content),
        plots.draw_active_curve(content),
        plots.draw_collapse_curve(content),
        plots.draw_kl_maps(content),
        layer_plots.draw_interventions(content),
        layer_plots.draw_rate_distortion(content),
        informed and layer_plots.draw_information(content),
        informed and layer_plots.draw_aggregates(content),
        *pictures.draw_model(model, x, seed),
        pictures.draw_traversals(model, x, score.collapse.layers)
        if model.any_temperature
        else None,
        pictures.draw_ranked(*images_by_kl(content, batches)),
    ]
    return {drawing.name: drawing for drawing in drawings if drawing}


def images_by_kl(
    content: ReportContent, batches: EvaluationBatches
) -> tuple[list[str], list[Tensor]]:
    """For some layers, a label and the images of least and of most KL in them."""
    layers = [content.layers[k - 1] for k in pictures.spread(len(content.layers))]
    labels = [
        f"layer {layer.layer}: {layer.by_image.quantiles[0]:.2f} … "
        f"{layer.by_image.quantiles[-1]:.2f} nats"
        for layer in layers
    ]
    ids = [layer.by_image.least + layer.by_image.most for layer in layers]
    return labels, [batches.at(torch.tensor(each)) for each in ids]
