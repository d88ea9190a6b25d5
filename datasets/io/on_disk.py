"""Images that stay in their file: for sets that would not fit the memory, or not several times."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor


class ImagesOnDisk:
    """Images (N, …) uint8 in a file, read as they are asked for, and handed out on `device`.

    Of the tensor that they stand for they have `shape`, `device`, `len`, `to`, `split`, slices
    (which stay on the disk too) and indexing by a tensor of places (which reads). A process holds
    nothing of the file; the system keeps it where memory is to spare, once for all processes. It is
    read, not mapped: a fault of a mapping maps up to 2 MB, which then counts as the process's, and
    to give that back often takes longer than reading.

    offset: where the first one begins, in bytes.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]):
        self._file = open(path, "rb", buffering=0)
        self._offset, self._image = offset, math.prod(shape[1:])
        self.shape, self.device = torch.Size(shape), torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: torch.device | str) -> "ImagesOnDisk":
        """The same images, handed out on another device."""
        return self._like(self._offset, len(self), torch.device(device))

    def split(self, count: int) -> Iterator[Tensor]:
        """All images in order, up to `count` at a time."""
        for first in range(0, len(self), count):
            yield self[torch.arange(first, min(first + count, len(self)))]

    def __getitem__(self, places: "slice | Tensor") -> "ImagesOnDisk | Tensor":
        """A slice, on the disk; or the images (B, …) at places (B,), read.

        Raises:
            OSError: if the file has become shorter.
        """
        if isinstance(places, slice):
            first, last, _ = places.indices(len(self))
            return self._like(self._offset + first * self._image, max(last - first, 0), self.device)
        file, size, offset = self._file.fileno(), self._image, self._offset
        parts = [os.pread(file, size, offset + place * size) for place in places.tolist()]
        data = bytearray().join(parts)
        if len(data) < size * len(parts):
            raise OSError(f"{self._file.name} is shorter than it was: was it changed?")
        found = torch.frombuffer(data, dtype=torch.uint8) if parts else torch.empty(0).byte()
        return found.view(len(parts), *self.shape[1:]).to(self.device)

    def _like(self, offset: int, count: int, device: torch.device) -> "ImagesOnDisk":
        new = object.__new__(ImagesOnDisk)
        new._file, new._offset, new._image = self._file, offset, self._image
        new.shape, new.device = torch.Size((count, *self.shape[1:])), device
        return new
