"""The score of a trained model on a split: bound, collapse, log-likelihoods, image quality."""

import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.fingerprint import images_digest
from datasets.loaders import EvaluationBatches
from model import LadderVAE
from model.estimators import ESTIMATORS, Estimator, named
from utils.evaluation.bound import NllEstimate, estimate_nll, posterior_collapse
from utils.evaluation.collapse import THRESHOLDS, Collapse, posterior_samples_for
from utils.evaluation.compared_runs import Run
from utils.evaluation.metrics import Metrics, checked, layer_values
from utils.evaluation.quality import ImageQuality, QualityMetrics
from utils.evaluation.record import ScoreRecord, conditions
from utils.processes import collectives
from utils.settings.build import build_own
from utils.settings.identity import without_secrets
from utils.settings.schema import Settings
from utils.terminal import Terminal, one_line
from utils.version import code_version

log = logging.getLogger("ladder_vae")
PROTOCOL = {
    "bernoulli": "dynamic binarisation, drawn anew in every pass",
    "gaussian": "density of the grey levels on [-1, 1]",
    "logistic": "probability of the grey levels",
    "logistic_mixture": "probability of the grey levels",
}


@dataclass(frozen=True)
class Score:
    """A model on a split: the record, and the per-image figures that it averages."""

    record: ScoreRecord
    collapse: Collapse
    nll: dict[str, Tensor]  # by estimator: −log p(x) of every image, (N,) nats
    metrics: Metrics  # a user's own, whose values the record has
    estimators: Mapping[str, Estimator]  # those of the record

    @property
    def per_image(self) -> dict[str, np.ndarray]:
        """Arrays (N, …) in the images' order, in nats."""
        collapse = self.collapse
        arrays = {"reconstruction": collapse.reconstruction, "kl": collapse.kl}
        arrays |= {"nelbo": collapse.nelbo}
        arrays |= {f"nll_{estimator}": nll for estimator, nll in self.nll.items()}
        return {name: values.numpy() for name, values in arrays.items()}


def score(
    model: LadderVAE,
    settings: Settings,
    batches: EvaluationBatches,
    split: str,
    checkpoint: Path,
    digest: str,
    terminal: Terminal,
    quality: QualityMetrics | None = None,
) -> Score:
    """Bound, KL per layer, active units and log-likelihoods over the images of all processes.

    Estimators are those of task.estimators; collapse metrics of a user's own are those of
    `settings.metrics`. checkpoint, digest: the model's file and its SHA-256, for the record.
    quality: measures FID and the error of reconstructions, if given.
    """
    start = time.monotonic()
    metrics = checked(build_own(settings, "metrics"))
    own = build_own(settings, "estimators")
    estimators = {name: own.get(name) or named(name) for name in settings.task.estimators}
    collapse = _collapse(model, settings, batches, split, terminal)
    seed = settings.task.noise_seed
    measured = _measure_quality(quality, model, batches, seed, split, terminal)
    estimates, nll = _estimate_all(model, settings, estimators, batches, split, terminal)
    record = ScoreRecord(
        name=settings.name,
        seed=settings.train.seed,
        code=code_version(),
        parameters=parameter_counts(model),
        checkpoint=os.path.relpath(checkpoint),
        checkpoint_digest=digest,
        dataset=settings.dataset.name,
        split=split,
        images_digest=images_digest(batches.images),
        protocol=PROTOCOL[settings.model.likelihood],
        conditions=conditions(settings.task),
        dims=math.prod(model.image_shape),
        context=model.has_context,
        bound=collapse.report(),
        active_by_threshold=[
            sum(units.active(threshold)[0] for units in collapse.layers) for threshold in THRESHOLDS
        ],
        likelihoods=estimates,
        quality=measured,
        metrics=layer_values(metrics, collapse),
        config=without_secrets(settings),
        seconds=round(time.monotonic() - start, 1),
    )
    return Score(record, collapse, nll, metrics, estimators)


def scored_before(
    model: LadderVAE,
    settings: Settings,
    batches: EvaluationBatches,
    digest: str,
    earlier: Run,
    terminal: Terminal,
) -> Score | None:
    """The score again that a run's files are of; None where it would not be the same one.

    What they do not hold, each unit's statistics, is computed anew; likelihoods are not.
    """
    record, names = earlier.record, [e.estimator for e in earlier.record.likelihoods]
    known = {**ESTIMATORS, **build_own(settings, "estimators")}
    now = (digest, conditions(settings.task), images_digest(batches.images))
    same = (record.checkpoint_digest, record.conditions, record.images_digest) == now
    if not same or not known.keys() >= {*names}:
        return None
    return Score(
        record,
        _collapse(model, settings, batches, record.split, terminal),
        {name: torch.from_numpy(earlier.per_image[f"nll_{name}"]) for name in names},
        checked(build_own(settings, "metrics")),
        {name: known[name] for name in names},
    )


def _collapse(
    model: LadderVAE,
    settings: Settings,
    batches: EvaluationBatches,
    split: str,
    terminal: Terminal,
) -> Collapse:
    """Of as many posterior samples as a score takes."""
    samples, seed = posterior_samples_for(len(batches.images)), settings.task.noise_seed
    with terminal.bar(f"{split}: bound", len(batches.ids)) as bar:
        return posterior_collapse(model, batches, seed, samples, bar.count)


def _estimate_all(
    model: LadderVAE,
    settings: Settings,
    estimators: Mapping[str, Estimator],
    batches: EvaluationBatches,
    split: str,
    terminal: Terminal,
) -> tuple[list[NllEstimate], dict[str, Tensor]]:
    """The estimates, and by estimator every image's −log p(x): (N,) nats."""
    estimates, nll = [], {}
    samples, paths = settings.model.is_k, settings.model.is_k_paths
    shared, seed = settings.model.is_k_per_context, settings.task.noise_seed
    for name, estimator in estimators.items():
        with terminal.bar(f"{split}: {name}, K = {samples}", len(batches.ids)) as bar:
            estimate, nll[name] = estimate_nll(
                model, batches, estimator, samples, paths, shared, seed, bar.count
            )
        estimates.append(estimate.model_copy(update={"estimator": name}))
        if estimate.warning:
            terminal.line(f"Note: {estimate.warning}.")
    return estimates, nll


def _measure_quality(
    quality: QualityMetrics | None,
    model: LadderVAE,
    batches: EvaluationBatches,
    seed: int,
    split: str,
    terminal: Terminal,
) -> ImageQuality | None:
    """FID and the error of reconstructions; a failure is reported and costs no other figure.

    Of several processes it ends the command, before what takes longest: the others wait in the
    metrics' sums.
    """
    if quality is None:
        return None
    try:
        with terminal.bar(f"{split}: FID, reconstructions", len(batches.ids)) as bar:
            return quality.measure(model, batches, seed, bar.count)
    except Exception as error:
        if collectives.several():
            raise
        log.exception("FID and reconstruction error")
        terminal.line(f"Without FID and reconstruction error: {one_line(error)}")
        return None


def parameter_counts(model: LadderVAE) -> dict[str, int]:
    """Numbers of parameters: of the model, and of encoder, decoder and the context's prior."""
    prior = getattr(model.decoder, "context_prior", None)
    parts = {"all": model, "encoder": model.encoder, "decoder": model.decoder, "prior": prior}
    counts = {
        f"parameters/{name}": sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if part is not None
    }
    counts["parameters/decoder"] -= counts.get("parameters/prior", 0)
    return counts
