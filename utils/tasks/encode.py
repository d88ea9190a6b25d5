"""task=encode: the latents of images, in files."""

import math

from utils.errors import ConfigError
from utils.evaluation.encoding import Subject, describe, write_latents
from utils.processes.collectives import main_first
from utils.processes.ranks import Processes
from utils.settings.command_line import Command
from utils.settings.images import splits_of
from utils.tasks.trained import Trained


def encode(command: Command, processes: Processes) -> None:
    """latents_<split>.npz with its record, or a folder of such files for a larger set."""
    trained = Trained.named(command, processes)
    settings, job = trained.settings, trained.job
    task, layers = settings.task, trained.layers()
    splits = splits_of(settings, job)
    subject = Subject.of(splits, task.split, task.num_images)
    if not len(subject):
        raise ConfigError(f"task.split={task.split} has no images: use another one.")
    encoding = describe(
        trained.model,
        subject,
        layers,
        task.values,
        task.shard_mb,
        task.noise_seed,
        checkpoint_digest=trained.digest,
        dataset=settings.dataset.name,
        split=task.split,
        classes=list(splits.classes),
    )
    batch_size = settings.dataset.data_module.test_batch_size
    with job.terminal.bar(f"{task.split}: latents", len(subject)) as bar:
        path = write_latents(
            trained.model,
            subject,
            encoding,
            trained.output,
            job.device,
            batch_size,
            processes,
            bar.count,
        )
    main_first(processes, lambda: None)  # all have written
    files = f" in {encoding.files} files" if encoding.files > 1 else ""
    numbers = sum(map(math.prod, encoding.shapes))
    job.terminal.line(
        f"The {task.values}s of {len(layers)} layer(s), {numbers:,} numbers each, of "
        f"{encoding.images:,} {task.split} images of {encoding.dataset}{files}: {path}"
    )
