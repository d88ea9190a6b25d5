"""Images that are read one by one: what a reader provides, their splits, reading in order."""

import hashlib
import math
import os
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from datasets.io.decode import Unusable
from datasets.splits import SPLITS

BLOCK_IMAGES, BLOCK_BYTES = 64, 4_000_000  # upper limits of what a thread reads in one task
QUEUED_BLOCKS = 64  # read ahead of the consumer: several for every thread
MAX_THREADS = 16

ItemRef = tuple[str, int]  # a part of an ImageSource, and the index of an image in it


@dataclass(frozen=True)
class ImageSource:
    """Images that have not been read yet.

    source: the path or name they are known by. identity: a text that changes whenever an image
    does. parts: the names of the images of `train` and `test` (and `validation`), or of `all`,
    which is then divided. read(part, index) returns (C, H, W) uint8, or raises Unusable; parallel:
    it may be called by several threads at once. labels: class numbers of a part's images, indices
    into `classes`. notes: sentences on what was left out, and why.
    """

    source: str
    identity: str
    shape: tuple[int, int, int]
    parts: Mapping[str, Sequence[str]]
    read: Callable[[str, int], np.ndarray]
    parallel: bool = True
    labels: Mapping[str, Sequence[int]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    max_value: int = 255

    @property
    def image_bytes(self) -> int:
        """The size of one image."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Block:
    """Some images in order: those that could be read; (name, reason) of the others."""

    items: list[ItemRef]
    images: list[np.ndarray]
    skipped: list[tuple[str, str]]


def divide(
    parts: Mapping[str, Sequence[str]], validation_share: float, test_share: float
) -> dict[str, list[ItemRef]]:
    """Assign every image to a split.

    Where the source has no splits of its own, a hash of the image's name decides, so that adding
    an image moves none of the others.
    """
    splits: dict[str, list[ItemRef]] = {split: [] for split in SPLITS}
    for part, names in parts.items():
        undivided = part == "all" or (part == "train" and "validation" not in parts)
        for index, name in enumerate(names):
            split = part
            if undivided:
                split = _split_of(name, validation_share, test_share if part == "all" else 0.0)
            splits[split].append((part, index))
    return splits


def _split_of(name: str, validation_share: float, test_share: float) -> str:
    """The split of a name, by a hash in [0, 1) that is the same on every machine."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")
    position = int.from_bytes(hashlib.sha256(text).digest()[:6]) / 2**48
    if position < test_share:
        return "test"
    return "validation" if position >= 1.0 - validation_share else "train"


def reader_pool(source: ImageSource) -> ThreadPoolExecutor:
    """The threads that `read_blocks` uses."""
    threads = min(os.cpu_count() or 1, MAX_THREADS)
    return ThreadPoolExecutor(threads if source.parallel else 1)


def read_blocks(
    pool: ThreadPoolExecutor, source: ImageSource, items: Sequence[ItemRef]
) -> Iterator[Block]:
    """Read these images with the threads of a pool; the blocks come in order."""
    size = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // source.image_bytes))
    queue: deque = deque()
    for first in range(0, len(items), size):
        queue.append(pool.submit(_read_block, source, items[first : first + size]))
        if len(queue) > QUEUED_BLOCKS:
            yield queue.popleft().result()
    while queue:
        yield queue.popleft().result()


def _read_block(source: ImageSource, items: Sequence[ItemRef]) -> Block:
    block = Block([], [], [])
    for part, index in items:
        try:
            block.images.append(source.read(part, index))
            block.items.append((part, index))
        except Unusable as error:
            block.skipped.append((source.parts[part][index], str(error)))
    return block
