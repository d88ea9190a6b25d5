"""Images that are read one at a time, stored once as one uint8 file that later starts just open.

The file holds the images of the three splits after one another; a JSON file beside it says what
they are. It is written under another name first, so that it is whole or not there; its SHA-256 is
checked at every start; and it is made anew where the images, or what is to be done to them, change.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import unicodedata
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datasets.io.decode import Unusable
from datasets.io.on_disk import ImagesOnDisk
from datasets.splits import SPLITS, ImageSplits

FORMAT = 1  # of what is stored; another one is made anew
BLOCK, BLOCK_BYTES = 64, 4_000_000  # that a thread reads in one go, at most
AHEAD = 64  # blocks that are read before they are written: some for every thread
MOST_THREADS = 16
NAMED = 3  # files that are named of each kind that is passed over

Place = tuple[str, int]  # a part of Unstored, and which of its images


@dataclass(frozen=True)
class Unstored:
    """Images that are still to be read.

    place: what they are called, as a path. identity: a text that changes where an image does.
    parts: the names of the images of `train` and `test` (and `validation`), or of `all`, which is
    to be divided. read(part, index) gives (C, H, W) uint8, or raises Unusable; parallel: from
    several threads at once. labels: class numbers of a part's images, indices into `classes`.
    """

    place: str
    identity: str
    shape: tuple[int, int, int]
    parts: Mapping[str, Sequence[str]]
    read: Callable[[str, int], np.ndarray]
    parallel: bool = True
    labels: Mapping[str, Sequence[int]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    max_value: int = 255


def load(
    images: Unstored,
    cache: str,
    memory_limit: float,
    validation_share: float = 0.0,
    test_share: float = 0.0,
) -> ImageSplits:
    """The images, from the file that the folder `cache` has of them, or gets.

    Up to memory_limit (GB) they are read into memory, larger sets stay in it. The shares are of
    what has no such split of its own.

    Raises:
        ValueError: if no image can be read, a split is empty, or there is no room.
    """
    kind = (FORMAT, images.place, images.shape, images.max_value, validation_share, test_share)
    title = re.sub(r"[^\w-]+", "_", Path(images.place).stem)
    stem = f"{title}-{_digest(repr(kind))[:8]}"
    path = Path(cache).absolute() / f"{stem}-{_digest(images.identity)[:16]}.images"
    if found := _open(path, images, memory_limit):
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_name(f"{stem}.lock")):
            if found := _open(path, images, memory_limit):  # others were at it
                return found
            _make(path, images, divide(images.parts, validation_share, test_share))
            for old in path.parent.glob(f"{stem}-*"):
                if old.stem != path.stem:  # of images that are no longer so
                    old.unlink(missing_ok=True)
            found = _open(path, images, memory_limit)
    except OSError as error:
        raise ValueError(
            f"The images of {images.place} could not be stored in dataset.cache={cache} "
            f"({error.strerror or error}): make room, or name another folder."
        ) from error
    if found is None:
        raise ValueError(
            f"{path} came back from the disk as another file than was written: set dataset.cache "
            "to a folder on another disk."
        )
    return found


def divide(
    parts: Mapping[str, Sequence[str]], validation_share: float, test_share: float
) -> dict[str, list[Place]]:
    """Which images are of which split.

    By a hash of each image's own name where the source doesn't say: another image more moves none.
    """
    found: dict[str, list[Place]] = {split: [] for split in SPLITS}
    for part, names in parts.items():
        undivided = part == "all" or (part == "train" and "validation" not in parts)
        for index, name in enumerate(names):
            split = part
            if undivided:
                split = _split_of(name, validation_share, test_share if part == "all" else 0.0)
            found[split].append((part, index))
    return found


def _split_of(name: str, validation_share: float, test_share: float) -> str:
    """By a number in [0, 1) that belongs to the name, on every machine."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    share = int.from_bytes(hashlib.sha256(text).digest()[:6]) / 2**48
    if share < test_share:
        return "test"
    return "validation" if share >= 1.0 - validation_share else "train"


def _open(path: Path, images: Unstored, memory_limit: float) -> ImageSplits | None:
    """What is stored at path, if it is whole."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        counts = [record["counts"][split] for split in SPLITS]
        size = sum(counts) * math.prod(images.shape)
        if path.stat().st_size != size:
            return None
        on_disk = size > memory_limit * 1e9
        content = None if on_disk else np.fromfile(path, np.uint8)
        if (_file_digest(path) if on_disk else _digest(content)) != record["sha256"]:
            return None
    except (OSError, ValueError, KeyError):
        return None
    if on_disk:
        whole, (train, validation, _) = ImagesOnDisk(path, 0, (sum(counts), *images.shape)), counts
        splits = whole[:train], whole[train : train + validation], whole[train + validation :]
    else:
        splits = torch.from_numpy(content).view(-1, *images.shape).split(counts)
    labels = record["labels"] and tuple(torch.tensor(record["labels"][s]) for s in SPLITS)
    notes = tuple(record["notes"])
    return ImageSplits(*splits, images.max_value, labels, tuple(record["classes"]), notes)


def _make(path: Path, images: Unstored, places: Mapping[str, list[Place]]) -> None:
    """Read all images and write them down."""
    number = sum(map(len, places.values()))
    size, free = number * math.prod(images.shape), shutil.disk_usage(path.parent).free
    if size > free:
        raise ValueError(
            f"The images of {images.place} take {size / 1e9:,.1f} GB, of which dataset.cache="
            f"{path.parent} has {free / 1e9:,.1f} GB left: make room, or name another folder."
        )
    counts, labels = dict.fromkeys(SPLITS, 0), {split: [] for split in SPLITS}
    passed_over = defaultdict(list)
    sha256, threads = hashlib.sha256(), min(os.cpu_count() or 1, MOST_THREADS)
    temporary = path.with_name(f"{path.stem}.part")  # nobody else's: there is a lock
    try:
        with (
            warnings.catch_warnings(),
            open(temporary, "wb") as file,
            tqdm(desc=images.place, total=number, unit=" images", disable=None) as bar,
            ThreadPoolExecutor(threads if images.parallel else 1) as pool,
        ):
            # About metadata, and about sizes, which are checked; here, since it is for all threads.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            for split in SPLITS:
                for kept, arrays, failed in _read_all(pool, images, places[split]):
                    data = b"".join(array.tobytes() for array in arrays)
                    sha256.update(data)
                    file.write(data)
                    counts[split] += len(kept)
                    for part, index in kept if images.labels else ():
                        labels[split].append(int(images.labels[part][index]))
                    for name, reason in failed:
                        kind, _, detail = reason.partition(": ")
                        passed_over[kind].append(f"{name} ({detail})" if detail else name)
                    bar.update(len(kept) + len(failed))
            file.flush()
            os.fsync(file.fileno())
        notes = [*images.notes, *_told(passed_over)]
        _check(images.place, counts, notes)
        temporary.rename(path)
        record = {
            "counts": counts,
            "labels": labels if images.labels else None,
            "classes": images.classes,
            "notes": notes,
            "sha256": sha256.hexdigest(),
        }
        temporary.write_text(json.dumps(record), encoding="utf-8")
        temporary.rename(path.with_suffix(".json"))
    finally:
        temporary.unlink(missing_ok=True)


def _read_all(
    pool: ThreadPoolExecutor, images: Unstored, places: Sequence[Place]
) -> Iterator[tuple[list[Place], list[np.ndarray], list[tuple[str, str]]]]:
    """In order, a block at a time: what could be read, and (name, reason) of what could not."""

    def read(block: Sequence[Place]) -> tuple:
        kept, arrays, failed = [], [], []
        for part, index in block:
            try:
                arrays.append(images.read(part, index))
                kept.append((part, index))
            except Unusable as error:
                failed.append((images.parts[part][index], str(error)))
        return kept, arrays, failed

    size, ahead = max(1, min(BLOCK, BLOCK_BYTES // math.prod(images.shape))), deque()
    for first in range(0, len(places), size):
        ahead.append(pool.submit(read, places[first : first + size]))
        if len(ahead) > AHEAD:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _told(passed_over: Mapping[str, list[str]]) -> Iterable[str]:
    for reason, names in passed_over.items():
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        yield f"{len(names):,} passed over, {reason}: {', '.join(sorted(names)[:NAMED])}{more}"


def _check(place: str, counts: Mapping[str, int], notes: Sequence[str]) -> None:
    """Raise ValueError where a split has no images."""
    told = f" ({'; '.join(notes)})" if notes else ""
    if not any(counts.values()):
        raise ValueError(f"{place} has no images that can be read{told}: set dataset.root to some.")
    for split, count in counts.items():
        if count == 0:
            raise ValueError(
                f"The {sum(counts.values())} image(s) of {place} leave none for {split}{told}: use "
                "more of them, give validation and test other shares (dataset.validation_share, "
                "dataset.test_share), or divide them yourself into train/, validation/ and test/."
            )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """While its block runs, no other process of this machine is in it with the same file."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _digest(content: "str | np.ndarray") -> str:
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return hashlib.sha256(data).hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
