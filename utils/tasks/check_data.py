"""task=check_data: what a data set holds, before anything is trained on it."""

import math
import time
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from datasets.contents import SplitContents, class_counts, contents
from datasets.splits import SPLITS, ImageSplits
from utils.files import write_json
from utils.processes.job import Job
from utils.processes.launch import Processes
from utils.runs.access import results_folder
from utils.settings.command_line import Command
from utils.settings.images import load_images
from utils.settings.schema import Settings
from utils.table import Cell, Column, Table, number
from utils.terminal import Terminal
from utils.training.memory import estimate_memory, total_memory

MOST_CLASSES = 30  # that the terminal shows; the JSON file has all


def check_data(command: Command, processes: Processes) -> None:
    """Tables on the terminal; check_data.json and contact_sheet.png in a folder."""
    settings = command.settings
    job = Job.on(settings.train.device, processes)
    if not job.is_main:
        return
    from utils.report.contact_sheet import contact_sheet  # loads matplotlib: 0.5 s
    from utils.report.drawing import save

    own = Path(settings.runs_dir, "check_data", settings.dataset.name)
    output = results_folder(settings.task.output, own).absolute()
    began = time.monotonic()
    splits = load_images(settings)
    seconds = time.monotonic() - began
    name, line = settings.dataset.name, job.terminal.line
    line(f"{name}: {splits.counts} images of {splits.image_shape}, ready in {seconds:.1f} s")
    for note in splits.notes:
        line(f"{name}: {note}")
    found, classes = contents(splits), class_counts(splits)
    memory = memory_of_training(settings, splits, job)
    show_levels(found, settings, job.terminal)
    show_classes(classes, job.terminal)
    show_repeated(found, job.terminal)
    show_memory(memory, settings, job)
    record = {
        "name": name,
        "config": settings.plain["dataset"],
        "image_shape": splits.image_shape,
        "seconds": round(seconds, 2),
        "notes": splits.notes,
        "splits": {split: asdict(one) for split, one in found.items()},
        "classes": classes,
        "memory": memory,
    }
    path = write_json(output / "check_data.json", record)
    picture = save(contact_sheet(splits, settings), output)
    line(f"All figures are in {path}, some images with their contexts in {picture}")


def memory_of_training(settings: Settings, splits: ImageSplits, job: Job) -> dict[str, int]:
    """Bytes that training takes for each purpose, and those that the device has."""
    batch = settings.dataset.data_module.batch_size
    weights, activations = estimate_memory(settings, -(-batch // settings.train.acc_grad))
    pixels = sum(len(getattr(splits, s)) for s in SPLITS) * math.prod(splits.image_shape)
    on_disk = not isinstance(splits.train, Tensor)
    return {
        "images": 0 if on_disk else pixels,
        "on_disk": pixels if on_disk else 0,
        "weights": round(weights),
        "activations": round(activations),
        "there": total_memory(job.device),
    }


def show_levels(found: dict[str, SplitContents], settings: Settings, terminal: Terminal) -> None:
    """A row for each split."""
    mean, deviation = settings.dataset.standardisation
    names = ("images", "min", "max", "mean", "deviation", "repeated")
    table = Table(
        f"Levels of the images; mean and deviation on 0 … 255, where dataset.standardisation is "
        f"[{mean:g}, {deviation:g}]",
        [Column("split", text=True), *map(Column, names)],
        [
            [
                Cell(split),
                Cell(f"{one.images:,}"),
                Cell(f"{one.min:g}"),
                Cell(f"{one.max:g}"),
                number(one.mean),
                number(one.deviation),
                Cell(f"{one.repeated:,}"),
            ]
            for split, one in found.items()
        ],
    )
    terminal.table(table)


def show_classes(classes: dict[str, list[int]], terminal: Terminal) -> None:
    """A row for each class, up to MOST_CLASSES."""
    if classes:
        shown = list(classes.items())[:MOST_CLASSES]
        more = ", the first" * (len(shown) < len(classes))
        table = Table(
            f"Images of {len(classes)} classes{more}",
            [Column("class", text=True), *map(Column, SPLITS)],
            [[Cell(name), *(Cell(f"{count:,}") for count in counts)] for name, counts in shown],
        )
        terminal.table(table)


def show_repeated(found: dict[str, SplitContents], terminal: Terminal) -> None:
    """A note where images of one split are in another too."""
    for split, one in found.items():
        for later, count in one.also_in.items():
            if count:
                terminal.line(
                    f"Note: {count:,} image(s) of {later} are in {split} too, pixel for pixel."
                )


def show_memory(memory: dict[str, int], settings: Settings, job: Job) -> None:
    """What training takes, in words."""
    batch = settings.dataset.data_module.batch_size // settings.train.acc_grad
    needs = [memory[key] / 1e9 for key in ("weights", "activations", "images")]
    stay = f" ({memory['on_disk'] / 1e9:.2f} stay in their file)" if memory["on_disk"] else ""
    job.terminal.line(
        f"Training {settings.name} takes {sum(needs):.2f} GB of {job.device}'s "
        f"{memory['there'] / 1e9:.1f}, beside PyTorch itself: weights, gradients and moments "
        f"{needs[0]:.2f}, a pass over {batch} images {needs[1]:.2f}, the images {needs[2]:.2f}"
        f"{stay}."
    )
