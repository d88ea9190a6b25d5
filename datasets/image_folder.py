"""Images of one's own: a folder of image files, or an array of uint8 images in .npy or .npz.

A folder is flat or nested, of PNG, JPEG, WebP and other files of any size; folders in it are
classes. Subfolders train/ and test/ (and validation/) divide it; else each image's split follows
from a hash of its name: another image moves none. What cannot be used is counted in `notes`.
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

from datasets.io.cache import Unstored
from datasets.io.decode import SUFFIXES, Decoder
from datasets.io.on_disk import ImagesOnDisk
from datasets.splits import SPLITS

ARRAYS = (".npy", ".npz")
Status = tuple[int, int]  # of a file: bytes, time of its last change in ns


def load(root: str, size: int, shape: Sequence[int]) -> Unstored:
    """The images at root, as shape (C, size, size).

    Raises:
        ValueError: if root is no folder of images and no array of them.
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


def _from_folder(root: Path, decoder: Decoder) -> Unstored:
    left_out = Counter()
    folders = {split: root / split for split in SPLITS if (root / split).is_dir()}
    if folders.keys() >= {"train", "test"}:
        beside = [path for path in root.iterdir() if path not in folders.values()]
        left_out["beside train/ and test/"] = len(beside)
    else:
        folders = {"all": root}
    found = {part: sorted(_files(folder, left_out)) for part, folder in folders.items()}
    files = {part: [path for path, _ in listed] for part, listed in found.items()}
    names = {
        part: [path.relative_to(folders[part]).as_posix() for path in files[part]] for part in files
    }
    classes, labels = _classes(names)
    return Unstored(
        place=str(root),
        identity=repr({part: [(str(p), s) for p, s in listed] for part, listed in found.items()}),
        shape=(decoder.channels, decoder.size, decoder.size),
        parts=names,
        read=lambda part, index: decoder(files[part][index]),
        labels=labels,
        classes=classes,
        notes=tuple(f"{count:,} passed over, {why}" for why, count in left_out.items() if count),
    )


def _files(root: Path, left_out: Counter) -> Iterator[tuple[Path, Status]]:
    """Every image file under root, each folder once, however links lead."""
    seen = set()

    def unreadable(error: OSError) -> None:
        left_out[f"a folder: {error.strerror}"] += 1

    for folder, inner, names in os.walk(root, followlinks=True, onerror=unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            left_out["a folder: a link to one that is in already"] += 1
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            if name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                left_out["not named as an image"] += 1
                continue
            try:
                status = path.stat()
            except OSError as error:
                left_out[f"a link: {error.strerror}"] += 1
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, (status.st_size, status.st_mtime_ns)
            else:  # to read a pipe would wait for ever
                left_out["not a regular file"] += 1


def _classes(names: dict[str, list[str]]) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """The folders that all images are in, where there are several; and each image's."""
    tops = {p: [n.rpartition("/")[0].partition("/")[0] for n in names[p]] for p in names}
    classes = sorted(set().union(*tops.values()))
    if len(classes) < 2 or "" in classes:
        return (), {}
    number = {name: n for n, name in enumerate(classes)}
    return tuple(classes), {part: [number[top] for top in tops[part]] for part in tops}


def _from_arrays(path: Path, decoder: Decoder) -> Unstored:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) uint8, C 1 or 3.

    An .npz has `train` and `test` (and `validation`), or one array (or `images`); and class numbers
    as `labels`, or `train_labels` and so on.
    """
    labels: dict[str, np.ndarray] = {}
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not array.flags.c_contiguous:
            raise ValueError("an array in Fortran order")
        _checked(array)
        arrays = {"all": ImagesOnDisk(path, array.offset, array.shape)}
    else:
        with np.load(path, allow_pickle=False) as content:
            names = [name for name in content if not name.endswith("labels")]
            if {"train", "test"} <= set(names):
                parts = {split: split for split in SPLITS if split in names}
            elif len(names) == 1 or "images" in names:
                parts = {"all": "images" if "images" in names else names[0]}
            else:
                raise ValueError(f"several arrays, {', '.join(names)}, and none named images")
            arrays = {part: torch.from_numpy(_checked(content[n])) for part, n in parts.items()}
            for part in parts:
                name = "labels" if part == "all" else f"{part}_labels"
                if name in content:
                    labels[part] = content[name].astype(int).ravel()
    if labels and any(len(labels.get(part, ())) != len(arrays[part]) for part in arrays):
        raise ValueError("another number of labels than of images")
    status = path.stat()

    def read(part: str, index: int) -> np.ndarray:
        pixels = arrays[part][torch.tensor([index])][0].numpy()
        return decoder.fit(Image.fromarray(_channels_last(pixels)))

    return Unstored(
        place=str(path),
        identity=repr((status.st_size, status.st_mtime_ns)),
        shape=(decoder.channels, decoder.size, decoder.size),
        parts={part: [str(n) for n in range(len(a))] for part, a in arrays.items()},
        read=read,
        labels=labels,
        classes=tuple(map(str, range(1 + max((v.max() for v in labels.values()), default=-1)))),
    )


def _checked(array: np.ndarray) -> np.ndarray:
    """The array, if it is of images."""
    channels = array.ndim == 3 or (array.ndim == 4 and {1, 3} & {array.shape[1], array.shape[3]})
    if array.dtype != np.uint8 or not channels or 0 in array.shape:
        raise ValueError(f"{array.dtype} {array.shape}")
    return array


def _channels_last(pixels: np.ndarray) -> np.ndarray:
    """One image as (H, W) or (H, W, 3)."""
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
