"""The latents of a split's images in files: one, or a folder of shards written one at a time.

A file has `ids` (N,), the images' indices in their split; `labels` (N,), where there are any; and
`layer_0` … (N, w, h, h) float32. Beside them stands a record of what they are, by which a folder
that was left half full is continued, and one of something else refused.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from datasets.fingerprint import fingerprint
from datasets.loaders import EvaluationBatches
from datasets.splits import SPLITS, Images, ImageSplits
from model.latents import LatentAccess
from model.noise import Noise, NoisePurpose
from utils.errors import ConfigError
from utils.files import atomic_write, make_folder, read_json, write_json
from utils.processes import collectives
from utils.processes.ranks import Processes

INDEX = "index.json"
FLOAT = 4  # bytes
REMEDY = "name another folder by task.output=…, or remove this one"


class Encoding(BaseModel, frozen=True):
    """What files of latents hold, and of which images by which model."""

    checkpoint_digest: str
    dataset: str
    split: str
    images: int
    fingerprint: str  # of the images
    values: Literal["mean", "sample"]
    layers: list[int]
    shapes: list[tuple[int, ...]]  # (w, h, h) of each
    noise_seed: int
    images_per_file: int
    classes: list[str]  # names of the labels, where there are any

    @property
    def files(self) -> int:
        """How many."""
        return -(-self.images // self.images_per_file)


@dataclass(frozen=True)
class Subject:
    """Images (N, …) of a split with their labels (N,), where they have any."""

    images: Images
    max_value: int
    labels: Tensor | None

    @classmethod
    def of(cls, splits: ImageSplits, split: str, count: int | None) -> "Subject":
        """The first `count` images of a split; all where that is None."""
        labels = splits.labels and splits.labels[SPLITS.index(split)][:count]
        return cls(getattr(splits, split)[:count], splits.max_value, labels)

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)


def images_per_file(shapes: Sequence[Sequence[int]], megabytes: int) -> int:
    """How many images' latents fit into so many megabytes; one at least."""
    return max(1, int(megabytes * 1e6 / (FLOAT * sum(map(math.prod, shapes)))))


def describe(
    model: LatentAccess,
    subject: Subject,
    layers: Sequence[int],
    values: str,
    megabytes: int,
    seed: int,
    **source: object,
) -> Encoding:
    """The record of files yet to be written; source: checkpoint_digest, dataset, split, classes."""
    shapes = [tuple(model.latent_shapes[layer]) for layer in layers]
    return Encoding(
        images=len(subject),
        fingerprint=fingerprint(subject.images),
        values=values,
        layers=list(layers),
        shapes=shapes,
        noise_seed=seed,
        images_per_file=images_per_file(shapes, megabytes),
        **source,
    )


def write_latents(
    model: LatentAccess,
    subject: Subject,
    encoding: Encoding,
    output: Path,
    device: torch.device,
    batch_size: int,
    processes: Processes,
    tick: Callable[[int], None],
) -> Path:
    """Write latents_<split>.npz, or the files of latents_<split>/ that are not there yet.

    Every process writes files of its own; the record is the main one's. Returns the file or folder.

    Raises:
        ConfigError: if the folder holds other latents.
    """
    stem = f"latents_{encoding.split}"
    if encoding.files == 1:
        path = output / f"{stem}.npz"
        if processes.is_main:
            _write(path, _arrays(model, subject, encoding, 0, device, batch_size, tick))
            write_json(path.with_suffix(".json"), encoding.model_dump())
        return path
    folder = output / stem

    def begin() -> None:
        check_folder(folder, encoding)
        write_json(folder / INDEX, encoding.model_dump())

    collectives.main_first(processes, begin if processes.is_main else lambda: None)
    for index in range(processes.rank, encoding.files, processes.world):
        path = folder / f"{index:05d}.npz"
        if path.exists():
            tick(min(encoding.images_per_file, encoding.images - index * encoding.images_per_file))
        else:
            _write(path, _arrays(model, subject, encoding, index, device, batch_size, tick))
    return folder


def check_folder(folder: Path, encoding: Encoding) -> None:
    """Refuse a folder that holds something else than a part of these latents.

    Raises:
        ConfigError: naming what differs.
    """
    index = folder / INDEX
    if not index.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} holds something else than latents: {REMEDY}.")
        return
    try:
        found = Encoding.model_validate(read_json(index, REMEDY))
    except ValidationError as error:
        raise ConfigError(f"{index} is no record of latents: {REMEDY}.") from error
    for name, wanted in encoding:
        if (there := getattr(found, name)) != wanted:
            raise ConfigError(
                f"{folder} holds latents of {name}={there}, where {wanted} is asked for: {REMEDY}."
            )


@torch.no_grad()
def _arrays(
    model: LatentAccess,
    subject: Subject,
    encoding: Encoding,
    index: int,
    device: torch.device,
    batch_size: int,
    tick: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """One file's content."""
    first = index * encoding.images_per_file
    images = subject.images[first : first + encoding.images_per_file]
    arrays = {"ids": np.arange(first, first + len(images))}
    if subject.labels is not None:
        arrays["labels"] = subject.labels[first : first + len(images)].numpy()
    for layer, shape in zip(encoding.layers, encoding.shapes, strict=True):
        arrays[f"layer_{layer}"] = np.empty((len(images), *shape), np.float32)
    mean, done = encoding.values == "mean", 0
    for batch in EvaluationBatches(images.to(device), subject.max_value, batch_size):
        noise = Noise.keyed(batch.ids + first, encoding.noise_seed, NoisePurpose.ENCODING)
        encoded = model.latents(batch.x, temperature=0.0 if mean else 1.0, noise=noise)
        rows = slice(done, done + len(batch.ids))
        for layer in encoding.layers:
            found = encoded[layer].mean if mean else encoded[layer].sample
            arrays[f"layer_{layer}"][rows] = found.float().cpu().numpy()
        done = rows.stop
        tick(len(batch.ids))
    return arrays


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Uncompressed: floating-point numbers hardly shrink."""
    make_folder(path.parent)
    atomic_write(path, lambda file: np.savez(file, **arrays))
