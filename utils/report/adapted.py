"""The report, and scores of foreign images, of somebody else's model (docs/your_model.md).

What `report` writes into a folder is what task=test and task=report write of a model of this
project: task=compare takes such a folder among its runs.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.fingerprint import images_digest
from datasets.loaders import EvaluationBatches, evenly_spaced
from model.adapter import AdaptedVAE, HierarchicalVAE
from model.estimators import ESTIMATORS
from utils.evaluation.bound import estimate_nll, posterior_collapse
from utils.evaluation.collapse import THRESHOLDS, posterior_samples_for
from utils.evaluation.information import interventions
from utils.evaluation.ood import REPLICATES, OodRecord, detect, score_both
from utils.evaluation.probes import probe
from utils.evaluation.record import ScoreRecord
from utils.evaluation.scoring import Score
from utils.files import write_scores
from utils.report.collapse_report import write_pages
from utils.report.content import report_content
from utils.report.ood_page import ood_table, write_ood
from utils.report.tables import show_score
from utils.terminal import Terminal

PROBED = 1_000  # images of the probes


@dataclass(frozen=True)
class Subject:
    """Images (N, C, H, W) uint8, levels 0 … max_value, and what they are called.

    labels: class numbers (N,), where there are any. The model gets 2·image/max_value − 1.
    """

    images: Tensor
    dataset: str
    split: str = "test"
    max_value: int = 255
    labels: Tensor | None = None

    def batches(self, size: int) -> EvaluationBatches:
        """In batches.

        Raises:
            ValueError: if there are no images, or they are not uint8 (N, C, H, W).
        """
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(
                f"{self.dataset} has {self.images.dtype} images {tuple(self.images.shape)}: give "
                "uint8 (N, C, H, W)."
            )
        return EvaluationBatches(self.images, self.max_value, size, labels=self.labels)


def report(
    vae: HierarchicalVAE,
    subject: Subject,
    output: str | Path,
    name: str,
    untrained: HierarchicalVAE | None = None,
    num_samples: int = 100,
    batch_size: int = 100,
    noise_seed: int = 0,
) -> Path:
    """<split>_scores.json and .npz, and report/, in the folder `output`; the page's path.

    untrained: the same model with fresh weights, for the probes. num_samples: importance samples.

    Raises:
        ValueError: one sentence, if the model is not what `HierarchicalVAE` says.
    """
    batches, terminal = subject.batches(batch_size), Terminal()
    model = AdaptedVAE(vae, subject.images.shape[1:])
    fresh = untrained and AdaptedVAE(untrained, subject.images.shape[1:])
    found = _score(model, subject, batches, name, num_samples, noise_seed, terminal)
    ablated = interventions(model, batches, noise_seed, _no_tick)
    ids = evenly_spaced(len(subject.images), PROBED)
    labels = None if subject.labels is None else subject.labels[ids]
    probes = probe(model, fresh, batches.at(ids), labels, _no_tick)
    content = report_content(found, ablated, None, probes, model.layer_names)
    folder = Path(output)
    write_scores(folder, f"{subject.split}_scores", found.record.to_json(), found.per_image)
    show_score(terminal, found.record)
    write_pages(model, found, content, batches, folder / "report", noise_seed, terminal)
    return folder / "report" / "report.html"


def tell_apart(
    vae: HierarchicalVAE,
    inside: Subject,
    outside: Subject,
    output: str | Path,
    name: str,
    samples: int = 1,
    batch_size: int = 100,
    noise_seed: int = 0,
) -> Path:
    """task=ood of the model: ood.html, .json and .npz in the folder `output`; the page's path.

    Raises:
        ValueError: one sentence, if the two differ in shape, number or levels of their images.
    """
    kinds = [(tuple(each.images.shape), each.max_value) for each in (inside, outside)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"{inside.dataset} has images {kinds[0][0]} with levels up to {kinds[0][1]}, "
            f"{outside.dataset} {kinds[1][0]} up to {kinds[1][1]}: give as many of the same kind."
        )
    model, terminal = AdaptedVAE(vae, inside.images.shape[1:]), Terminal()
    batches = [each.batches(batch_size) for each in (inside, outside)]
    scores = score_both(model, batches, noise_seed, samples, _no_tick)
    record = OodRecord(
        name=name,
        checkpoint=name,
        checkpoint_digest="",
        inside=inside.dataset,
        outside=outside.dataset,
        split=inside.split,
        images=len(inside.images),
        digests=tuple(images_digest(each.images) for each in (inside, outside)),
        layers=model.layer_names,
        samples=samples,
        noise_seed=noise_seed,
        replicates=REPLICATES,
        detections=[detect(score, noise_seed) for score in scores],
    )
    terminal.table(ood_table(record))
    return write_ood(record, scores, Path(output))


def _score(
    model: AdaptedVAE,
    subject: Subject,
    batches: EvaluationBatches,
    name: str,
    num_samples: int,
    seed: int,
    terminal: Terminal,
) -> Score:
    """Bound, collapse and importance-weighted likelihood, as `utils.evaluation.scoring.score`."""
    count = posterior_samples_for(len(batches.images))
    collapse = posterior_collapse(model, batches, seed, count, _no_tick)
    estimate, nll = estimate_nll(model, batches, "iwae", num_samples, 1, 1, seed, _no_tick)
    if estimate.warning:
        terminal.line(f"Note: {estimate.warning}.")
    parameters = model.vae.parameters() if isinstance(model.vae, nn.Module) else ()
    record = ScoreRecord(
        name=name,
        seed=0,
        parameters={"parameters/all": sum(p.numel() for p in parameters)},
        checkpoint=name,
        dataset=subject.dataset,
        split=subject.split,
        images_digest=images_digest(subject.images),
        protocol="log p(x | z) as the model says it",
        conditions={"noise_seed": seed},
        dims=math.prod(model.image_shape),
        context=False,
        bound=collapse.report(),
        active_by_threshold=[
            sum(units.active(threshold)[0] for units in collapse.layers) for threshold in THRESHOLDS
        ],
        likelihoods=[estimate],
        config={"name": name, "adapter": type(model.vae).__qualname__},
    )
    return Score(record, collapse, {"iwae": nll}, {}, {"iwae": ESTIMATORS["iwae"]})


def _no_tick(done: int) -> None:
    """Progress that nobody sees."""
