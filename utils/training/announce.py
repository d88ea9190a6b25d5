"""What is about to be trained, in a few lines."""

import torch

from datasets.splits import ImageSplits
from utils.processes.job import Job
from utils.runs.folder import RunFolder
from utils.settings.schema import Settings
from utils.training.trainer import Trainer


def announce(
    settings: Settings,
    folder: RunFolder,
    splits: ImageSplits,
    trainer: Trainer,
    job: Job,
    trouble: str | None,
) -> None:
    """The run, its images, how its batches are divided, and where it goes on.

    trouble: what is wrong with its newest checkpoint, if anything.
    """
    model, progress, line = trainer.model, trainer.progress, job.terminal.line
    if trouble:
        line(trouble)
    batch, micro_batches = trainer.batches.batch_size, settings.train.acc_grad
    world, name = job.processes.world, settings.dataset.name
    share = batch // (world * micro_batches)
    parameters = sum(p.numel() for p in model.parameters())
    threads = f", {torch.get_num_threads()} thread(s)" if job.device.type == "cpu" else ""
    line(f"{folder.name}: {parameters:,} parameters, on {job.device}{threads}")
    line(f"{name}: {splits.counts} images of {splits.image_shape}")
    for note in splits.notes:
        line(f"{name}: {note}")
    line(
        f"batch {batch} = {world} process(es) × {micro_batches} micro-batch(es) × {share}"
        + (f"; started by {job.processes.launcher}" if world > 1 else "")
    )
    line(
        "each epoch: training loss, validation bound = reconstruction + KL, the share of latent "
        "units that are active (they vary with the image), and * where the bound is the lowest"
    )
    earlier, epochs = settings.train.extended_from, settings.train.max_epochs
    if earlier and progress.epoch <= earlier[-1]:
        rate = trainer.state.optimizer.param_groups[0]["lr"]
        line(
            f"trained longer: {earlier[-1]} epochs before, now {epochs}; from here on the learning "
            f"rate ({rate:.3g}) and the KL's weight are those of a run of {epochs} epochs"
        )
    if progress.step:
        line(f"continuing at epoch {progress.epoch + 1}, step {progress.step + 1}")
