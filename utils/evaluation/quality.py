"""How images look: FID of samples (Heusel et al. 2017) and the error of reconstructions.

Both by torchmetrics, and only where train.compute_fid asks for them: FID needs the weights of an
Inception network, which are looked for before a run starts, so that a long one does not end on it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from model.noise import Noise, NoisePurpose
from utils.files import file_digest
from utils.runs.checkpoints import read
from utils.terminal import Terminal

log = logging.getLogger("ladder_vae")

INSTALL = "pip install -e '.[quality]'"
DIGEST = "6726825d"  # how the SHA-256 of the published weights begins; it is in their name
PIXELS = 255.0


@dataclass(frozen=True)
class Quality:
    """The metrics, ready to use; fid is None where its weights are not to be had."""

    fid: nn.Module | None
    weights: str | None  # the first digits of their SHA-256
    mse: nn.Module
    psnr: nn.Module

    @torch.no_grad()
    def measure(
        self,
        model: LadderVAE,
        batches: EvaluationBatches,
        seed: int,
        tick: Callable[[int], None],
    ) -> dict:
        """Over the images of all processes: each reconstructed, and one sample for each.

        Reconstructions are means of p(x | z), on 0 … 1; FID depends on the number of samples.
        """
        for metric in (self.fid, self.mse, self.psnr):
            if metric is not None:
                metric.reset()
        for batch in batches:
            noise = Noise.keyed(batch.ids, seed, NoisePurpose.QUALITY)
            mean = model.reconstruct(batch.x, model.num_latents, noise=noise)
            for metric in (self.mse, self.psnr):
                metric.update((mean.contiguous() + 1.0) / 2.0, (batch.x.contiguous() + 1.0) / 2.0)
            if self.fid is not None:
                self.fid.update(_pixels(batch.x), real=True)
                self.fid.update(_pixels(model.sample(len(batch.ids), noise=noise)), real=False)
            tick(len(batch.ids))
        count = len(batches.images)
        found = {"reconstruction_mse": float(self.mse.compute())}
        found["reconstruction_psnr"] = float(self.psnr.compute())
        if self.fid is not None and count > 1:
            found["fid"] = float(self.fid.compute())
            found |= {"fid_samples": count, "fid_weights": self.weights}
        return found


def prepare(train: dict, device: torch.device, terminal: Terminal) -> Quality | None:
    """The metrics that train.compute_fid asks for; says what is missing, and goes on without it.

    Raises:
        ValueError: if train.fid_weights names a file that holds no such weights.
    """
    if not train["compute_fid"]:
        return None
    try:
        from torchmetrics import MeanSquaredError
        from torchmetrics.image import FrechetInceptionDistance, PeakSignalNoiseRatio
    except ImportError as error:
        terminal.line(f"Without FID and reconstruction error: {error.name} is missing; {INSTALL}.")
        return None
    fid = weights = None
    path = _weights(train["fid_weights"], terminal)
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
    return Quality(fid, weights, mse, psnr)


def _weights(wanted: str | None, terminal: Terminal) -> Path | None:
    """The file of the Inception network's weights: the one named, else PyTorch's copy, fetched.

    It is read here first, as tensors and nothing else: torch-fidelity would run what is in it.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError as error:
        terminal.line(f"Without FID: {error.name} is missing; {INSTALL}.")
        return None
    if wanted is not None:
        path = Path(wanted).expanduser()
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
