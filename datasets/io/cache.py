"""A cache of decoded images: one uint8 file per data set, which later starts just open.

The file holds the images of the three splits one after another; a JSON file beside it records
counts, labels and the SHA-256, which every start checks. It is written under another name first, so
that it is either complete or absent, and written again whenever the images or their processing
change.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock

from datasets.io.on_disk import ImagesOnDisk
from datasets.io.source import Block, ImageSource, ItemRef, divide, read_blocks, reader_pool
from datasets.splits import SPLITS, ImageSplits

FORMAT = 1  # of the cached file; one of another format is written again
MAX_NAMED = 3  # files that a note names for each reason to skip them


def load(
    images: ImageSource,
    cache: str,
    memory_limit: float,
    validation_share: float = 0.0,
    test_share: float = 0.0,
) -> ImageSplits:
    """The images, from their file in the folder `cache`, which is written if it is missing.

    Sets of up to memory_limit (GB) are read into memory, larger ones stay on the disk. The shares
    apply to sources that have no such split of their own.

    Raises:
        ValueError: if no image can be read, a split is empty, or the disk is full.
    """
    kind = (FORMAT, images.source, images.shape, images.max_value, validation_share, test_share)
    title = re.sub(r"[^\w-]+", "_", Path(images.source).stem)
    stem = f"{title}-{_digest(repr(kind))[:8]}"
    path = Path(cache).absolute() / f"{stem}-{_digest(images.identity)[:16]}.images"
    if splits := _open(path, images, memory_limit):
        return splits
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{stem}.lock")):
            splits = _open(path, images, memory_limit)  # another process may have written it
            if splits is None:
                _write(path, images, divide(images.parts, validation_share, test_share))
                _remove_outdated(path, stem)
                splits = _open(path, images, memory_limit)
    except OSError as error:
        raise ValueError(
            f"The images of {images.source} could not be stored in dataset.cache={cache} "
            f"({error.strerror or error}): make room, or name another folder."
        ) from error
    if splits is None:
        raise ValueError(
            f"{path} came back from the disk as another file than was written: set dataset.cache "
            "to a folder on another disk."
        )
    return splits


def _remove_outdated(path: Path, stem: str) -> None:
    """Delete the files of this data set that hold earlier states of its images."""
    for old in path.parent.glob(f"{stem}-*"):
        if old.stem != path.stem:
            old.unlink(missing_ok=True)


def _open(path: Path, images: ImageSource, memory_limit: float) -> ImageSplits | None:
    """The cached images at `path`; None where they are missing or damaged."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        counts = [record["counts"][split] for split in SPLITS]
        size = sum(counts) * images.image_bytes
        if path.stat().st_size != size:
            return None
        on_disk = size > memory_limit * 1e9
        content = None if on_disk else np.fromfile(path, np.uint8)
        if (_file_digest(path) if on_disk else _digest(content)) != record["sha256"]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    if on_disk:
        stored = ImagesOnDisk(path, 0, (sum(counts), *images.shape))
        first, second = counts[0], counts[0] + counts[1]
        splits = stored[:first], stored[first:second], stored[second:]
    else:
        splits = torch.from_numpy(content).view(-1, *images.shape).split(counts)
    labels = record["labels"] and tuple(torch.tensor(record["labels"][s]) for s in SPLITS)
    notes = tuple(record["notes"])
    return ImageSplits(*splits, images.max_value, labels, tuple(record["classes"]), notes)


@dataclass
class _Contents:
    """What has been written so far: per split, and the names of skipped files by reason."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    labels: dict[str, list[int]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, split: str, block: Block, labels: Mapping[str, Sequence[int]]) -> None:
        """Count a block of a split."""
        self.counts[split] += len(block.items)
        if labels:
            self.labels[split] += [int(labels[part][index]) for part, index in block.items]
        for name, reason in block.skipped:
            kind, _, detail = reason.partition(": ")
            self.skipped[kind].append(f"{name} ({detail})" if detail else name)

    def notes(self) -> Iterable[str]:
        """A sentence for each reason to skip files."""
        for reason, names in self.skipped.items():
            more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
            named = ", ".join(sorted(names)[:MAX_NAMED])
            yield f"{len(names):,} passed over, {reason}: {named}{more}"


def _write(path: Path, images: ImageSource, items: Mapping[str, list[ItemRef]]) -> None:
    """Read all images and write their file, then the record beside it."""
    _check_space(path.parent, images, sum(map(len, items.values())))
    partial = path.with_name(f"{path.stem}.part")  # only ours: the caller holds the lock
    try:
        with _anew(partial) as file:
            contents, sha256 = _write_images(file, images, items)
            file.flush()
            os.fsync(file.fileno())
        notes = [*images.notes, *contents.notes()]
        _check_counts(images.source, contents.counts, notes)
        partial.rename(path)
        record = {
            "counts": contents.counts,
            "labels": contents.labels if images.labels else None,
            "classes": images.classes,
            "notes": notes,
            "sha256": sha256,
        }
        with _anew(partial) as file:
            file.write(json.dumps(record).encode())
        partial.rename(path.with_suffix(".json"))
    finally:
        partial.unlink(missing_ok=True)


def _anew(path: Path) -> BinaryIO:
    """A new file; what has its name goes first, and if that is a link, it is not followed."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


def _write_images(
    file: BinaryIO, images: ImageSource, items: Mapping[str, list[ItemRef]]
) -> tuple[_Contents, str]:
    """Append the images of all splits in order; what was written, and its SHA-256."""
    from tqdm import tqdm  # not at every start

    contents, sha256 = _Contents(), hashlib.sha256()
    total = sum(map(len, items.values()))
    shown = "".join(filter(str.isprintable, images.source))  # a path may hold anything
    with (
        warnings.catch_warnings(),
        tqdm(desc=shown, total=total, unit=" images", disable=None) as bar,
        reader_pool(images) as pool,
    ):
        # Pillow warns of metadata, and of sizes, which the decoder checks. Filters hold for all
        # threads, so they are set here.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for split in SPLITS:
            for block in read_blocks(pool, images, items[split]):
                data = b"".join(image.tobytes() for image in block.images)
                sha256.update(data)
                file.write(data)
                contents.add(split, block, images.labels)
                bar.update(len(block.items) + len(block.skipped))
    return contents, sha256.hexdigest()


def _check_space(folder: Path, images: ImageSource, count: int) -> None:
    """Raise ValueError where the disk has no room for so many images."""
    size, free = count * images.image_bytes, shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"The images of {images.source} take {size / 1e9:,.1f} GB, of which dataset.cache="
            f"{folder} has {free / 1e9:,.1f} GB left: make room, or name another folder."
        )


def _check_counts(source: str, counts: Mapping[str, int], notes: Sequence[str]) -> None:
    """Raise ValueError where a split has no images."""
    reasons = f" ({'; '.join(notes)})" if notes else ""
    if not any(counts.values()):
        raise ValueError(
            f"{source} has no images that can be read{reasons}: set dataset.root to some."
        )
    for split, count in counts.items():
        if count == 0:
            raise ValueError(
                f"The {sum(counts.values())} image(s) of {source} leave none for {split}{reasons}: "
                "use more of them, give validation and test other shares "
                "(dataset.validation_share, dataset.test_share), or divide them yourself into "
                "train/, validation/ and test/."
            )


def _digest(content: "str | np.ndarray") -> str:
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
