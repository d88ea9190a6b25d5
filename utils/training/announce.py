"""The lines that a training run starts with."""

from datasets.splits import ImageSplits
from utils.processes.launch import Processes
from utils.runs.folder import RunFolder
from utils.terminal import Terminal
from utils.training.trainer import Trainer


def announce(
    terminal: Terminal,
    folder: RunFolder,
    splits: ImageSplits,
    trainer: Trainer,
    processes: Processes,
    threads: int,
) -> None:
    """Print model, data, batch arithmetic and the step that a continued run starts at."""
    settings, model, progress = folder.config, trainer.model, trainer.progress
    batch, micro_batches = trainer.batches.batch_size, settings["train"]["acc_grad"]
    share = batch // (processes.world * micro_batches)
    parameters = sum(p.numel() for p in model.parameters())
    where = f"{model.device}, {threads} thread(s)" if model.device.type == "cpu" else model.device
    terminal.line(f"{folder.name}: {parameters:,} parameters, on {where}")
    terminal.line(f"{settings['dataset']['name']}: {splits.counts} images of {splits.image_shape}")
    for note in splits.notes:
        terminal.line(f"{settings['dataset']['name']}: {note}")
    terminal.line(
        f"batch {batch} = {processes.world} process(es) × {micro_batches} micro-batch(es) × {share}"
        + (f"; started by {processes.launcher}" if processes.world > 1 else "")
    )
    if progress.step:
        terminal.line(f"continuing at epoch {progress.epoch + 1}, step {progress.step + 1}")
