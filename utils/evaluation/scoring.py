"""The score of a trained model on a split, as a record of every figure."""

import logging
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from datasets.fingerprint import images_digest
from datasets.loaders import EvaluationBatches
from model import LadderVAE
from model.objective import bits_per_dim
from utils.evaluation.bound import likelihood, posterior_collapse
from utils.evaluation.collapse import THRESHOLDS, Collapse, CollapseReport, passes_for
from utils.evaluation.quality import Quality
from utils.files import file_digest
from utils.settings.identity import without_secrets
from utils.terminal import Terminal
from utils.version import code_version

log = logging.getLogger("ladder_vae")
PROTOCOL = {
    "bernoulli": "dynamic binarisation, one draw per image",
    "gaussian": "density of the grey levels on [-1, 1]",
    "logistic": "probability of the grey levels",
    "logistic_mixture": "probability of the grey levels",
}


@dataclass(frozen=True)
class Score:
    """A model on a split: the record as plain containers, and what it averages."""

    record: dict
    collapse: Collapse
    nll: dict[str, Tensor]  # by estimator: −log p(x) of every image, (N,) nats

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
    settings: dict,
    batches: EvaluationBatches,
    split: str,
    checkpoint: Path,
    terminal: Terminal,
    quality: Quality | None = None,
) -> Score:
    """Bound, KL per layer, active units and log-likelihoods over the images of all processes.

    checkpoint: the file that the model came from, named in the record. quality: what measures FID
    and the error of reconstructions; what goes wrong there is told and costs nothing else.
    """
    began, seed = time.monotonic(), settings["train"]["seed"]
    samples, paths = settings["model"]["is_k"], settings["model"]["is_k_prior"]
    with terminal.bar(f"{split}: bound", len(batches.ids)) as bar:
        passes = passes_for(len(batches.images))
        collapse = posterior_collapse(model, batches, seed, passes, bar.count)
    likelihoods, nll = [], {}
    for estimator in settings["task"]["estimators"]:
        with terminal.bar(f"{split}: {estimator}, K = {samples}", len(batches.ids)) as bar:
            found, nll[estimator] = likelihood(
                model, batches, estimator, samples, paths, seed, bar.count
            )
            likelihoods.append(asdict(found))
        if found.warning:
            terminal.line(f"Note: {found.warning}.")
    looks = None
    if quality is not None:
        try:
            with terminal.bar(f"{split}: FID, reconstructions", len(batches.ids)) as bar:
                looks = quality.measure(model, batches, seed, bar.count)
        except Exception as error:
            log.exception("FID and reconstruction error")
            terminal.line(f"Without FID and reconstruction error: {str(error).splitlines()[0]}")
    record = {
        "name": settings["name"],
        "seed": seed,
        "code": code_version(),
        "parameters": parameter_counts(model),
        "checkpoint": os.path.relpath(checkpoint),
        "checkpoint_digest": file_digest(checkpoint),
        "dataset": settings["dataset"]["name"],
        "split": split,
        "images_digest": images_digest(batches.images),
        "protocol": PROTOCOL[settings["model"]["likelihood"]],
        "dims": math.prod(model.image_shape),
        "context": model.decoder.num_top == 1,
        "bound": asdict(collapse.report()),
        "active_by_threshold": [
            sum(units.active(threshold)[0] for units in collapse.layers) for threshold in THRESHOLDS
        ],
        "likelihoods": likelihoods,
        "quality": looks,
        "config": without_secrets(settings),
        "seconds": round(time.monotonic() - began, 1),
    }
    return Score(record, collapse, nll)


def flat(found: dict) -> dict[str, float]:
    """The figures under `<split>/…` keys."""
    report, split = CollapseReport(**found["bound"]), found["split"]
    values = {
        f"{split}/nelbo": report.nelbo,
        f"{split}/reconstruction": report.reconstruction,
        f"{split}/kl": sum(report.kl),
        f"{split}/active_units": report.active_units,
        **found.get("parameters", {}),  # not in records of earlier versions
    }
    for entry in found["likelihoods"]:
        values[f"{split}/nll_{entry['estimator']}"] = entry["nll"]
        values[f"{split}/bpd_{entry['estimator']}"] = bits_per_dim(entry["nll"], found["dims"])
    for name in ("fid", "reconstruction_mse", "reconstruction_psnr"):
        if name in (found["quality"] or {}):
            values[f"{split}/{name}"] = found["quality"][name]
    for layer, (kl, active) in enumerate(zip(report.kl, report.active_per_layer, strict=True)):
        values[f"{split}/kl_{layer}"] = kl
        values[f"{split}/active_units_{layer}"] = active
    return values


def parameter_counts(model: LadderVAE) -> dict[str, int]:
    """Parameters of the whole and of its parts, the context's prior apart from the decoder."""
    prior = getattr(model.decoder, "context_prior", None)
    parts = {"all": model, "encoder": model.encoder, "decoder": model.decoder, "prior": prior}
    counts = {
        f"parameters/{name}": sum(p.numel() for p in part.parameters())
        for name, part in parts.items()
        if part is not None
    }
    counts["parameters/decoder"] -= counts.get("parameters/prior", 0)
    return counts
