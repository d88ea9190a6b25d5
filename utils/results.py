"""The score of a trained model on a split, as a record and as the tables a person reads."""

import hashlib
import logging
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.loaders import EvaluationBatches
from datasets.splits import Images, ImageSplits
from model import LadderVAE
from model.noise import Noise
from model.objective import bits_per_dim
from utils.collapse import ACTIVE_THRESHOLD, THRESHOLDS, Collapse, CollapseReport, passes_for
from utils.config import without_secrets
from utils.distributed import Processes
from utils.evaluation import likelihood, posterior_collapse
from utils.files import file_digest, write_arrays
from utils.quality import Quality
from utils.runs import RunFolder
from utils.terminal import Terminal
from utils.tracking import Tracker
from utils.trainer import Trainer
from utils.version import code_version

log = logging.getLogger("ladder_vae")

SAMPLES = 105  # keys the noise of task=sample
SAMPLE_BATCH = 500
FINGERPRINTED = 1_000  # images, evenly spread
DIGESTED = 10_000  # images at a time
GRID = 100  # samples that a picture holds
PICTURED = 10  # images that a run's pictures show
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


def images_digest(images: Images) -> str:
    """Sixteen hex digits that stand for these images in this order."""
    sha256 = hashlib.sha256(repr(tuple(images.shape)).encode())
    for part in images.split(DIGESTED):
        sha256.update(part.contiguous().cpu().numpy())
    return sha256.hexdigest()[:16]


def fingerprint(images: Images) -> str:
    """Of how many they are and what some of them show, which tells one set from another."""
    places = torch.linspace(0, len(images) - 1, FINGERPRINTED).round().long()
    return f"{len(images)}-{images_digest(images[places.unique()])}"


def show(terminal: Terminal, found: dict) -> None:
    """Two tables: the scores, and the layers."""
    report = CollapseReport(**found["bound"])
    scores = [("elbo", report.nelbo, report.nelbo_se, 1, "")]
    for entry in found["likelihoods"]:
        values = [entry[key] for key in ("estimator", "nll", "nll_se", "num_samples")]
        scores.append((*values, f"{entry['ess']:.1f}"))
    paths = {entry["prior_samples"] for entry in found["likelihoods"]} - {None}
    terminal.table(
        f"{found['name']}: {report.images:,} images; {found['protocol']}"
        + "".join(f"; p(u) in iwae from {n} diffusion paths" for n in paths)
        + "\npublished: what the published code computes, for its tables; not a bound",
        ["split", "estimator", "K", "ESS", "nll (nats)", "bits/dim", "recon.", "KL", "active"],
        [
            [
                found["split"],
                title,
                str(samples),
                ess,
                f"{nll:.2f} ± {error:.2f}",
                f"{bits_per_dim(nll, found['dims']):.4f}",
                f"{report.reconstruction:.2f}",
                f"{sum(report.kl):.2f}",
                f"{report.active_units:.1%}",
            ]
            for title, nll, error, samples, ess in scores
        ],
    )
    if found["quality"]:
        terminal.line(quality_line(found["quality"]))
    layers = zip(report.elements, report.kl, report.kl_share, report.active_per_layer, strict=True)
    terminal.table(
        f"Layers from the top; a unit is active where Var_x(E[z | x]) > {ACTIVE_THRESHOLD:g}, "
        f"from {report.passes} passes",
        ["layer", "", "units", "KL (nats)", "share of KL", "bits/unit", "active"],
        [
            [
                str(layer),
                "context" if found["context"] and layer == 0 else "",
                str(units),
                f"{kl:.3f}",
                f"{share:.1%}",
                f"{bits_per_dim(kl, units):.4f}",
                f"{active:.1%}",
            ]
            for layer, (units, kl, share, active) in enumerate(layers)
        ],
    )


def quality_line(quality: dict) -> str:
    """FID and reconstruction error in words."""
    text = (
        f"Reconstructions on 0 … 1: mean squared error {quality['reconstruction_mse']:.5f}, PSNR "
        f"{quality['reconstruction_psnr']:.2f} dB."
    )
    if "fid" in quality:
        text += (
            f" FID {quality['fid']:.2f} between {quality['fid_samples']:,} samples and as many "
            f"images (Inception weights {quality['fid_weights']})."
        )
    return text


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


@torch.no_grad()
def sample(model: LadderVAE, settings: dict, output: Path, terminal: Terminal) -> None:
    """task=sample: draws from p(x) as uint8 images, and a picture of the first ones' means."""
    from utils import figures
    from utils.drawing import save

    task, seed = settings["task"], settings["train"]["seed"]
    parts = []
    with terminal.bar("samples", task["num_images"]) as bar:
        for ids in torch.arange(task["num_images"], device=model.device).split(SAMPLE_BATCH):
            noise = Noise.keyed(ids, seed, SAMPLES)
            x = model.sample(len(ids), task["temperature"], noise)
            parts.append(((x + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
            bar.count(len(ids))
    count = min(task["num_images"], GRID)
    drawing = figures.draw_samples(model, seed, count, [task["temperature"]])
    picture = save(drawing, output)
    images = torch.cat(parts).numpy()  # (N, H, W, C)
    arrays = write_arrays(output / "samples.npz", {"images": images})
    terminal.line(f"{len(images)} samples (uint8, N×H×W×C) in {arrays}; a picture in {picture}")


def reconstruct(
    model: LadderVAE, settings: dict, batches: EvaluationBatches, output: Path, terminal: Terminal
) -> None:
    """task=reconstruct: pictures of images rebuilt from all and from the top latents."""
    from utils import figures
    from utils.drawing import save

    x = batches.first(settings["task"]["num_images"])
    for drawing in figures.draw_reconstructions(model, x, settings["train"]["seed"]):
        terminal.line(str(save(drawing, output)))


def draw(
    folder: RunFolder, tracker: Tracker, x: Tensor, model: LadderVAE, epoch: int, step: int
) -> None:
    """A run's pictures: the model's on the images x, and KL per layer so far; main process only."""
    if not folder.processes.is_main:
        return
    from utils import figures, plots
    from utils.drawing import save

    drawings = figures.draw_model(model, x, folder.config["train"]["seed"])
    drawings.append(plots.draw_kl(tracker.local.rows()))
    paths = [save(drawing, folder.figures) for drawing in drawings]
    tracker.pictures(paths, epoch, step)


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


def announce(
    terminal: Terminal,
    folder: RunFolder,
    splits: ImageSplits,
    trainer: Trainer,
    processes: Processes,
    threads: int,
) -> None:
    """What is about to run, in a few lines."""
    settings, model, progress = folder.config, trainer.model, trainer.progress
    batch, passes = trainer.batches.batch_size, settings["train"]["acc_grad"]
    share = batch // (processes.world * passes)
    parameters = sum(p.numel() for p in model.parameters())
    where = f"{model.device}, {threads} thread(s)" if model.device.type == "cpu" else model.device
    terminal.line(f"{folder.name}: {parameters:,} parameters, on {where}")
    terminal.line(f"{settings['dataset']['name']}: {splits.counts} images of {splits.image_shape}")
    for note in splits.notes:
        terminal.line(f"{settings['dataset']['name']}: {note}")
    terminal.line(
        f"batch {batch} = {processes.world} process(es) × {passes} pass(es) × {share}"
        + (f"; started by {processes.launcher}" if processes.world > 1 else "")
    )
    if progress.step:
        terminal.line(f"continuing at epoch {progress.epoch + 1}, step {progress.step + 1}")
