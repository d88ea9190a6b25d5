"""task=ood: a model's scores of its own data set's images and of another's."""

import os

from torch import Tensor

from datasets.fingerprint import images_digest
from datasets.loaders import EvaluationBatches, evenly_spaced
from datasets.splits import ImageSplits
from utils.errors import ConfigError
from utils.evaluation.ood import REPLICATES, OodRecord, detect, score_both
from utils.processes.job import Job
from utils.processes.ranks import Processes
from utils.report.figure_tables import shown_table
from utils.settings.command_line import Command
from utils.settings.identity import without_secrets
from utils.settings.images import splits_of
from utils.settings.other_images import label, with_images_of
from utils.settings.schema import Settings
from utils.tasks.recorder import Recorder, models_of
from utils.tasks.trained import Trained
from utils.tracking.wandb_evaluation import Evaluation


def ood(command: Command, processes: Processes) -> None:
    """A table on the terminal; a page, its histograms and every figure in a folder.

    Raises:
        ConfigError: if the two data sets don't fit, or one has no images.
    """
    from utils.report.ood_page import ood_table, write_ood  # loads matplotlib: 0.5 s

    recorder = Recorder(command, processes)
    trained = Trained.named(command, processes)
    settings, job = trained.settings, trained.job
    task, other = settings.task, with_images_of(settings, settings.ood)
    name = label(other, settings.ood)
    inside, outside = splits_of(settings, job), other_splits(other, job)
    images = equal_numbers(inside, outside, task.split, task.num_images)
    if settings.ood.invert:
        images[1] = outside.max_value - images[1]
    batches = [
        EvaluationBatches(
            each.to(job.device),
            inside.max_value,
            settings.dataset.data_module.test_batch_size,
            processes.rank,
            processes.world,
        )
        for each in images
    ]
    with job.terminal.bar(f"{task.split}: bounds", sum(len(each.ids) for each in batches)) as bar:
        scores = score_both(trained.model, batches, task.noise_seed, task.samples, bar.count)
    if not job.is_main:
        return
    record = OodRecord(
        name=settings.name,
        checkpoint=os.path.relpath(trained.file),
        checkpoint_digest=trained.digest,
        inside=settings.dataset.name,
        outside=name,
        split=task.split,
        images=len(images[0]),
        digests=tuple(map(images_digest, images)),
        layers=list(trained.model.layer_names),
        samples=task.samples,
        noise_seed=task.noise_seed,
        replicates=REPLICATES,
        detections=[detect(score, task.noise_seed) for score in scores],
    )
    folder = trained.output if task.output else trained.output / f"ood_{name}"
    page = write_ood(record, scores, folder)
    job.terminal.table(ood_table(record))
    job.terminal.line(f"The page with histograms is {page}")
    source = command.value("checkpoint")
    recorder.record(
        trained.output,
        job.terminal,
        lambda: Evaluation(
            job_type="ood",
            name=f"ood ({name}) of {trained.output.name}",
            config={**without_secrets(settings), "checkpoint": source},
            models=models_of(trained.named_file(source)),
            figures=record.tracker_values(),
            tables=[shown_table("ood", ood_table(record))],
            pictures=sorted(folder.glob("*.png")),
            page=page,
        ),
    )


def other_splits(settings: Settings, job: Job) -> ImageSplits:
    """The other data set's images.

    Raises:
        ConfigError: if they are not there, or damaged.
    """
    try:
        return splits_of(settings, job)
    except ValueError as error:
        raise ConfigError(str(error).replace("dataset.root", "ood.root")) from error


def equal_numbers(
    inside: ImageSplits, outside: ImageSplits, split: str, most: int | None
) -> list[Tensor]:
    """As many images of one split as of the other, spread over each: (N, C, H, W) uint8.

    Raises:
        ConfigError: if a split is empty.
    """
    both = [getattr(splits, split) for splits in (inside, outside)]
    count = min(len(both[0]), len(both[1]), most or len(both[0]))
    if count == 0:
        raise ConfigError(f"task.split={split} has no images in one of the data sets: use another.")
    return [images[evenly_spaced(len(images), count)] for images in both]
