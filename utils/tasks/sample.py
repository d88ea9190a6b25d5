"""task=sample: draws from p(x)."""

import torch

from model.noise import Noise, NoisePurpose
from utils.files import write_arrays
from utils.processes.launch import Processes
from utils.settings.command_line import Command
from utils.tasks.trained import Trained

SAMPLE_BATCH = 500
GRID = 100  # samples that a picture holds


@torch.no_grad()
def sample(command: Command, processes: Processes) -> None:
    """Draws as uint8 images (N, H, W, C) in samples.npz, and a picture of the first ones' means."""
    from utils.report import pictures
    from utils.report.drawing import save

    trained = Trained.named(command, processes)
    model, task, terminal = trained.model, trained.settings.task, trained.job.terminal
    seed, parts = task.noise_seed, []
    with terminal.bar("samples", task.num_images) as bar:
        for ids in torch.arange(task.num_images, device=model.device).split(SAMPLE_BATCH):
            x = model.sample(
                len(ids), task.temperature, Noise.keyed(ids, seed, NoisePurpose.SAMPLES)
            )
            parts.append(((x + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
            bar.count(len(ids))
    count = min(task.num_images, GRID)
    drawing = pictures.draw_samples(model, seed, count, [task.temperature])
    picture = save(drawing, trained.output)
    images = torch.cat(parts).numpy()
    arrays = write_arrays(trained.output / "samples.npz", {"images": images})
    terminal.line(f"{len(images)} samples (uint8, N×H×W×C) in {arrays}; a picture in {picture}")
