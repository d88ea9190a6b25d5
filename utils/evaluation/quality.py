"""Image quality: FID of samples (Heusel et al. 2017) and the error of reconstructions.

Both are computed by torchmetrics if train.compute_fid is set. FID needs the weights of an Inception
network; they are looked up before a run starts, so that a long run does not fail at its end.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from model.noise import Noise, NoisePurpose
from utils.files import file_digest
from utils.processes.collectives import agree, main_first
from utils.processes.job import Job
from utils.runs.checkpoints import read
from utils.settings.schema.train import Train
from utils.terminal import Terminal

log = logging.getLogger("ladder_vae")

INSTALL = "pip install -e '.[quality]'"
DIGEST = "6726825d"  # first digits of the published weights' SHA-256, also part of their file name
PIXELS = 255.0


def _is_none(value: object) -> bool:
    return value is None


class ImageQuality(BaseModel, frozen=True, defer_build=True):
    """Reconstruction error on pixels in 0 … 1, and FID if its weights were available."""

    reconstruction_mse: float
    reconstruction_psnr: float  # dB
    fid: float | None = Field(None, exclude_if=_is_none)
    fid_samples: int | None = Field(None, exclude_if=_is_none)
    fid_weights: str | None = Field(None, exclude_if=_is_none)  # first digits of their SHA-256


@dataclass(frozen=True)
class QualityMetrics:
    """The metrics, ready to use; fid is None if its weights are not available."""

    fid: nn.Module | None
    weights: str | None  # first digits of their SHA-256
    mse: nn.Module
    psnr: nn.Module

    @torch.no_grad()
    def measure(
        self,
        model: LadderVAE,
        batches: EvaluationBatches,
        seed: int,
        tick: Callable[[int], None],
    ) -> ImageQuality:
        """Quality of every image's reconstruction and of as many samples, over all processes.

        Reconstructions are means of p(x | z), scaled to 0 … 1; FID depends on the number of
        samples.
        """
        for metric in (self.fid, self.mse, self.psnr):
            if metric is not None:
                metric.reset()
        for batch in batches:
            noise = Noise.keyed(batch.ids, seed, NoisePurpose.QUALITY)
            mean = model.reconstruct(batch.x, model.num_latents, noise=noise)
            for metric in (self.mse, self.psnr):
                metric.update((mean.contiguous() + 1.0) / 2.0, (batch.x.contiguous() + 1.0) / 2.0)
            if self.fid is not None and len(batch.ids):
                self.fid.update(_pixels(batch.x), real=True)
                self.fid.update(_pixels(model.sample(len(batch.ids), noise=noise)), real=False)
            tick(len(batch.ids))
        mse, psnr = float(self.mse.compute()), float(self.psnr.compute())
        count = len(batches.images)
        if self.fid is None or count < 2:
            return ImageQuality(reconstruction_mse=mse, reconstruction_psnr=psnr)
        return ImageQuality(
            reconstruction_mse=mse,
            reconstruction_psnr=psnr,
            fid=float(self.fid.compute()),
            fid_samples=count,
            fid_weights=self.weights,
        )


def prepare_alike(train: Train, job: Job) -> QualityMetrics | None:
    """`prepare` on the main process first; what one process lacks, all do without.

    The metrics add up over the processes, so that one alone would wait for the others.
    """
    found = main_first(job.processes, lambda: prepare(train, job.device, job.terminal))
    without, without_fid = agree(found is None, found is None or found.fid is None)
    if found is None:
        return None
    if without:
        job.terminal.line("Without FID and reconstruction error: another process has not got them.")
        return None
    if without_fid and found.fid is not None:
        job.terminal.line("Without FID: another process has not got its weights.")
        return replace(found, fid=None, weights=None)
    return found


def prepare(train: Train, device: torch.device, terminal: Terminal) -> QualityMetrics | None:
    """The metrics if train.compute_fid is set; reports what is missing and continues without it.

    Raises:
        ValueError: if train.fid_weights names a file that does not hold these weights.
    """
    if not train.compute_fid:
        return None
    try:
        from torchmetrics import MeanSquaredError
        from torchmetrics.image import FrechetInceptionDistance, PeakSignalNoiseRatio
    except ImportError as error:
        terminal.line(f"Without FID and reconstruction error: {error.name} is missing; {INSTALL}.")
        return None
    fid = weights = None
    path = _inception_weights(train.fid_weights, terminal)
    if path is not None:
        try:
            fid = FrechetInceptionDistance(feature_extractor_weights_path=str(path)).to(device)
        except RuntimeError as error:
            raise ValueError(
                f"train.fid_weights={path} holds no weights of the Inception network that FID is "
                f"defined by: use the file whose SHA-256 begins with {DIGEST}."
            ) from error
        weights = file_digest(path)[:8]
    mse, psnr = MeanSquaredError().to(device), PeakSignalNoiseRatio(data_range=1.0).to(device)
    return QualityMetrics(fid, weights, mse, psnr)


def _inception_weights(named: str | None, terminal: Terminal) -> Path | None:
    """The file of the Inception network's weights: the named one, else PyTorch's, downloaded.

    It is read here first, as tensors only: torch-fidelity would execute code in its pickle.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError as error:
        terminal.line(f"Without FID: {error.name} is missing; {INSTALL}.")
        return None
    if named is not None:
        path = Path(named).expanduser()
        read(path, setting="train.fid_weights")
        return path
    path = Path(torch.hub.get_dir(), "checkpoints", URL_INCEPTION_V3.rpartition("/")[2])
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), DIGEST, progress=False)
        except (OSError, RuntimeError) as error:
            log.info("FID's weights: %s", error)
            terminal.line(
                f"Without FID: its Inception weights are not in {path} and could not be fetched; "
                f"put a copy of {path.name} there, or name it by train.fid_weights=…."
            )
            return None
    read(path, setting="train.fid_weights")
    return path


def _pixels(x: Tensor) -> Tensor:
    """x (B, C, H, W) in [−1, 1] as uint8 with three channels."""
    pixels = (0.5 * PIXELS * (x + 1.0)).round().clamp(0.0, PIXELS).to(torch.uint8)
    return pixels.contiguous().expand(-1, 3, -1, -1)
