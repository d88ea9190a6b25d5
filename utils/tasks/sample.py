"""task=sample: draws from p(x)."""

from pathlib import Path

import torch

from model import LadderVAE
from model.noise import Noise, NoisePurpose
from utils.files import write_arrays
from utils.terminal import Terminal

SAMPLE_BATCH = 500
GRID = 100  # samples that a picture holds


@torch.no_grad()
def sample(model: LadderVAE, settings: dict, output: Path, terminal: Terminal) -> None:
    """task=sample: draws from p(x) as uint8 images, and a picture of the first ones' means."""
    from utils.report import pictures
    from utils.report.drawing import save

    task, seed = settings["task"], settings["train"]["seed"]
    parts = []
    with terminal.bar("samples", task["num_images"]) as bar:
        for ids in torch.arange(task["num_images"], device=model.device).split(SAMPLE_BATCH):
            noise = Noise.keyed(ids, seed, NoisePurpose.SAMPLES)
            x = model.sample(len(ids), task["temperature"], noise)
            parts.append(((x + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
            bar.count(len(ids))
    count = min(task["num_images"], GRID)
    drawing = pictures.draw_samples(model, seed, count, [task["temperature"]])
    picture = save(drawing, output)
    images = torch.cat(parts).numpy()  # (N, H, W, C)
    arrays = write_arrays(output / "samples.npz", {"images": images})
    terminal.line(f"{len(images)} samples (uint8, N×H×W×C) in {arrays}; a picture in {picture}")
