"""Images in a file that is mapped to memory: for sets that would not fit, or not several times."""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RELEASE = 512_000_000  # bytes held, after which the pages are given back; fewer: slower
FAULT = 65_536  # bytes that the system maps around a place that is read


class MappedImages:
    """Images (N, …) uint8 in a file, read as they are asked for, and handed out on `device`.

    Of the tensor that they stand for they have `shape`, `device`, `len`, `to`, `split`, slices
    (which are mapped too) and indexing by a tensor of places (which reads). What was read is given
    back from time to time, so that a process holds little however long it runs; the system keeps
    it where memory is to spare, once for all processes of the machine.

    offset: where the first one begins, in bytes.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]):
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        flat = np.frombuffer(self._map, np.uint8, math.prod(shape), offset)
        self._images = flat.reshape(shape)
        self._held = 0
        self.device = torch.device("cpu")

    @property
    def shape(self) -> torch.Size:
        """(N, …)."""
        return torch.Size(self._images.shape)

    def __len__(self) -> int:
        return len(self._images)

    def to(self, device: torch.device | str) -> "MappedImages":
        """The same images, handed out on another device."""
        return self._like(self._images, torch.device(device))

    def split(self, count: int) -> Iterator[Tensor]:
        """All images in order, up to `count` at a time."""
        for first in range(0, len(self), count):
            yield self[torch.arange(first, min(first + count, len(self)))]

    def __getitem__(self, places: "slice | Tensor") -> "MappedImages | Tensor":
        """A slice, mapped; or the images (B, …) at places (B,), read."""
        if isinstance(places, slice):
            return self._like(self._images[places], self.device)
        found = torch.from_numpy(np.take(self._images, places.cpu().numpy(), axis=0))
        self._held += max(found.nbytes, FAULT * len(found))
        if self._held > RELEASE:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._held = 0
        return found.to(self.device)

    def _like(self, images: np.ndarray, device: torch.device) -> "MappedImages":
        new = object.__new__(MappedImages)
        new._map, new._images, new._held, new.device = self._map, images, 0, device
        return new
