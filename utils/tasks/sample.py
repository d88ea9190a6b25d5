"""task=sample: draws from p(x)."""

import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from model import LadderVAE
from model.noise import Noise, NoisePurpose
from utils.errors import ConfigError
from utils.files import atomic_write, make_folder
from utils.processes.launch import Processes
from utils.settings.command_line import Command
from utils.tasks.trained import Trained
from utils.terminal import Terminal, duration

SAMPLE_BATCH = 500
GRID = 100  # samples that a picture holds
LONG = 60.0  # seconds, from which on the time is estimated before


@torch.no_grad()
def sample(command: Command, processes: Processes) -> None:
    """Draws as uint8 images (N, H, W, C) in samples.npz, and a picture of the first ones' means."""
    from utils.report import pictures
    from utils.report.drawing import save

    trained = Trained.named(command, processes)
    model, task, terminal = trained.model, trained.settings.task, trained.job.terminal
    count, seed, path = task.num_images, task.noise_seed, trained.output / "samples.npz"
    channels, *sides = model.image_shape
    shape = (count, *sides, channels)
    make_folder(path.parent)
    _check_space(path.parent, int(np.prod(shape, dtype=object)), count)

    def write(file: BinaryIO) -> None:
        with terminal.bar("samples", count) as bar:
            drawn = _told(draws(model, count, task.temperature, seed), count, terminal)
            _write_npz(file, shape, _counted(drawn, bar.count))

    atomic_write(path, write)
    drawing = pictures.draw_samples(model, seed, min(count, GRID), [task.temperature])
    picture = save(drawing, trained.output)
    terminal.line(f"{count:,} samples (uint8, N×H×W×C) in {path}; a picture in {picture}")


def draws(model: LadderVAE, count: int, temperature: float, seed: int) -> Iterator[Tensor]:
    """Samples as uint8 (n, H, W, C), n at a time."""
    for first in range(0, count, SAMPLE_BATCH):
        ids = torch.arange(first, min(first + SAMPLE_BATCH, count), device=model.device)
        x = model.sample(len(ids), temperature, Noise.keyed(ids, seed, NoisePurpose.SAMPLES))
        yield ((x + 1.0) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def _told(parts: Iterator[Tensor], count: int, terminal: Terminal) -> Iterator[Tensor]:
    """The parts; after the first it is known, and said, how long many will take."""
    began = time.monotonic()
    for index, part in enumerate(parts):
        seconds = (time.monotonic() - began) * count / len(part)
        if index == 0 and seconds > LONG:
            terminal.line(f"{count:,} samples will take about {duration(seconds)}.")
        yield part


def _counted(parts: Iterator[Tensor], count: Callable[[int], None]) -> Iterator[Tensor]:
    """The parts; after each, `count` is called with its number of samples."""
    for part in parts:
        yield part
        count(len(part))


def _write_npz(file: BinaryIO, shape: tuple[int, ...], parts: Iterator[Tensor]) -> None:
    """An .npz with the one array `images`, of which only a part is in memory at a time."""
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as npz,
        npz.open("images.npy", "w", force_zip64=True) as array,
    ):
        np.lib.format.write_array_header_1_0(array, description)
        for part in parts:
            array.write(part.numpy().tobytes())


def _check_space(folder: Path, size: int, count: int) -> None:
    """The disk has room for so many bytes, compressed at the best to a tenth.

    Raises:
        ConfigError: where it has not.
    """
    free = shutil.disk_usage(folder).free
    if size / 10 > free:
        raise ConfigError(
            f"task.num_images={count} are {size / 1e9:,.0f} GB of images, and {folder} has "
            f"{free / 1e9:,.0f} GB left: use fewer, or set task.output=… to a larger disk."
        )
