"""Custom images: a folder of image files, or an array of uint8 images in a .npy or .npz file.

A folder may be flat or nested and hold PNG, JPEG, WebP and other files of any size; its subfolders
are classes. Subfolders train/ and test/ (and validation/) are splits; otherwise a hash of each
image's name decides its split, so that adding one moves no other. `notes` count skipped files.
"""

import os
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.io.decode import SUFFIXES, Decoder
from datasets.io.on_disk import ImagesOnDisk
from datasets.io.source import ImageSource
from datasets.splits import SPLITS, Images

ARRAYS = (".npy", ".npz")
FileStatus = tuple[int, int, int]  # size in bytes, time of the last change in ns, mode
MOST_CLASSES = 100_000  # a name is made for each number up to the largest
Arrays = tuple[dict[str, Images], dict[str, np.ndarray]]  # images and class numbers by part


def load(root: str, size: int, shape: Sequence[int]) -> ImageSource:
    """The images at root, each as (C, size, size) with shape = (C, …).

    Raises:
        ValueError: if root is neither a folder of images nor a file with an array of them.
    """
    path, decoder = Path(root).absolute(), Decoder(shape[0], size)
    if path.is_dir():
        return _from_folder(path, decoder)
    if not path.exists():
        raise ValueError(
            f"dataset.root={root} is not there: name a folder of images, a .npy or a .npz file."
        )
    if path.suffix.lower() not in ARRAYS:
        raise ValueError(
            f"dataset.root={root} is a file, but no .npy or .npz: name a folder of images (an "
            "archive must be unpacked first)."
        )
    try:
        return _from_arrays(path, decoder)
    except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"dataset.root={root} holds no images ({reason}): save uint8 (N, H, W) or (N, H, W, C) "
            "by numpy.save, or `train` and `test` by numpy.savez."
        ) from error


def _from_folder(root: Path, decoder: Decoder) -> ImageSource:
    skipped = Counter()
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if folders.keys() >= {"train", "test"}:
        beside = [path for path in root.iterdir() if path not in folders.values()]
        skipped["beside train/ and test/"] = len(beside)
    else:
        folders = {"all": root}
    listing = {part: sorted(_files(folder, skipped)) for part, folder in folders.items()}
    files = {part: [path for path, _ in listed] for part, listed in listing.items()}
    names = {
        part: [path.relative_to(folders[part]).as_posix() for path in files[part]] for part in files
    }
    classes, labels = _classes(names)
    return ImageSource(
        source=str(root),
        identity=repr({part: [(str(p), s) for p, s in listed] for part, listed in listing.items()}),
        shape=(decoder.channels, decoder.size, decoder.size),
        parts=names,
        read=lambda part, index: decoder(files[part][index]),
        labels=labels,
        classes=classes,
        notes=tuple(f"{count:,} passed over, {why}" for why, count in skipped.items() if count),
    )


def _files(root: Path, skipped: Counter) -> Iterator[tuple[Path, FileStatus]]:
    """All image files under root; a folder that links reach twice is read once."""
    visited = set()

    def unreadable(error: OSError) -> None:
        skipped[f"a folder: {error.strerror}"] += 1

    for folder, inner, names in os.walk(root, followlinks=True, onerror=unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            skipped["a folder: a link to one that is in already"] += 1
            inner.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                skipped["not named as an image"] += 1
                continue
            try:
                status = path.stat()
            except OSError as error:
                skipped[f"a link: {error.strerror}"] += 1
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, (status.st_size, status.st_mtime_ns, status.st_mode)
            else:  # reading a pipe would block forever
                skipped["not a regular file"] += 1


def _classes(names: dict[str, list[str]]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Class names and numbers, where every image is in one of several top-level folders."""
    tops = {p: [n.rpartition("/")[0].partition("/")[0] for n in names[p]] for p in names}
    classes = sorted(set().union(*tops.values()))
    if len(classes) < 2 or "" in classes:
        return (), {}
    number = {name: n for n, name in enumerate(classes)}
    return tuple(classes), {part: [number[top] for top in tops[part]] for part in tops}


def _from_arrays(path: Path, decoder: Decoder) -> ImageSource:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) uint8, C 1 or 3, from a .npy or .npz file."""
    arrays, labels = _read_npy(path) if path.suffix.lower() == ".npy" else _read_npz(path)
    if labels and any(len(labels.get(part, ())) != len(arrays[part]) for part in arrays):
        raise ValueError("another number of labels than of images")
    if any(numbers.min() < 0 for numbers in labels.values()):
        raise ValueError("labels under 0: number classes from 0, or save no labels")
    if any(numbers.max() >= MOST_CLASSES for numbers in labels.values()):
        raise ValueError(
            f"labels of {MOST_CLASSES:,} and more: number classes from 0, without gaps"
        )
    status = path.stat()

    def read(part: str, index: int) -> np.ndarray:
        pixels = arrays[part][torch.tensor([index])][0].numpy()
        return decoder.fit(Image.fromarray(_channels_last(pixels)))

    return ImageSource(
        source=str(path),
        identity=repr((status.st_size, status.st_mtime_ns)),
        shape=(decoder.channels, decoder.size, decoder.size),
        parts={part: [str(n) for n in range(len(a))] for part, a in arrays.items()},
        read=read,
        labels=labels,
        classes=tuple(map(str, range(1 + max((v.max() for v in labels.values()), default=-1)))),
    )


def _read_npy(path: Path) -> Arrays:
    """One array, which stays on the disk."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not array.flags.c_contiguous:
        raise ValueError("an array in Fortran order")
    _check_images(array)
    return {"all": ImagesOnDisk(path, array.offset, array.shape)}, {}


def _read_npz(path: Path) -> Arrays:
    """`train` and `test` (and `validation`), or one array (or the one named `images`).

    Class numbers are in `labels`, or in `train_labels` and so on.
    """
    with np.load(path, allow_pickle=False) as content:
        names = [name for name in content if not name.endswith("labels")]
        if {"train", "test"} <= set(names):
            parts = {split: split for split in SPLITS if split in names}
        elif len(names) == 1 or "images" in names:
            parts = {"all": "images" if "images" in names else names[0]}
        else:
            raise ValueError(f"several arrays, {', '.join(names)}, and none named images")
        arrays, labels = {}, {}
        for part, name in parts.items():
            arrays[part] = torch.from_numpy(_check_images(content[name]))
            labels_name = "labels" if part == "all" else f"{part}_labels"
            if labels_name in content:
                labels[part] = content[labels_name].astype(int).ravel()
    return arrays, labels


def _check_images(array: np.ndarray) -> np.ndarray:
    """The array itself; ValueError where it does not hold images."""
    if np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{array.dtype}: multiply [0, 1] by 255 and round, save as uint8")
    channels = array.ndim == 3 or (array.ndim == 4 and {1, 3} & {array.shape[1], array.shape[3]})
    if array.dtype != np.uint8 or not channels or 0 in array.shape:
        raise ValueError(f"{array.dtype} {array.shape}")
    return array


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """One image as (H, W) or (H, W, 3)."""
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
