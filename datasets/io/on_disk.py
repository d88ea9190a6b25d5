"""Images that stay on the disk, for sets that do not fit into memory once per process."""

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor


class ImagesOnDisk:
    """Images (N, …) uint8 in a file, read when they are indexed and returned on `device`.

    Supports what this project needs of a tensor: `shape`, `device`, `len`, `to`, `split`, slices
    (which stay on the disk) and indexing by a tensor of indices (which reads); batch after batch is
    better read by `read_ahead`. The process holds none of the file in memory; the system's page
    cache is shared by all processes. The file is read rather than mapped: a page fault of a mapping
    can map up to 2 MB, which then counts as the process's memory, and releasing it often takes
    longer than reading.

    offset: where the first image begins, in bytes.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...]):
        self._file = open(path, "rb", buffering=0)
        self._offset, self._image_bytes = offset, math.prod(shape[1:])
        self.shape, self.device = torch.Size(shape), torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def to(self, device: torch.device | str) -> "ImagesOnDisk":
        """The same images, returned on another device."""
        return self._like(self._offset, len(self), torch.device(device))

    def split(self, count: int) -> Iterator[Tensor]:
        """All images in order, up to `count` at a time."""
        for first in range(0, len(self), count):
            yield self[torch.arange(first, min(first + count, len(self)))]

    def __getitem__(self, indices: "slice | Tensor") -> "ImagesOnDisk | Tensor":
        """A slice, still on the disk; or the images (B, …) at indices (B,), read.

        Raises:
            OSError: if the file was truncated meanwhile.
        """
        if isinstance(indices, slice):
            first, last, _ = indices.indices(len(self))
            return self._like(
                self._offset + first * self._image_bytes, max(last - first, 0), self.device
            )
        images = torch.empty(len(indices), *self.shape[1:], dtype=torch.uint8)
        return self._read(indices.tolist(), images).to(self.device)

    def read_ahead(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images (B, …) at each of these indices (B,), which should be on the CPU.

        A thread reads the next ones while these are used, and a GPU copies from pinned memory, for
        which the host doesn't wait.

        Raises:
            OSError: as by indexing.
        """
        on_gpu = self.device.type == "cuda"
        with ThreadPoolExecutor(1, "images") as thread:

            def begin(part: Tensor) -> Future:
                shape = (len(part), *self.shape[1:])
                images = torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu)
                return thread.submit(self._read, part.tolist(), images)

            tasks = map(begin, indices)
            following = next(tasks, None)
            while following:
                current, following = following, next(tasks, None)
                yield current.result().to(self.device, non_blocking=on_gpu)

    def _read(self, indices: list[int], images: Tensor) -> Tensor:
        """Read into `images` (B, …), and return them."""
        file, size = self._file.fileno(), self._image_bytes
        rows = images.view(len(indices), size).numpy()
        for index, row in zip(indices, rows, strict=True):
            if os.preadv(file, [row], self._offset + index * size) < size:
                raise OSError(f"{self._file.name} is shorter than it was: was it changed?")
        return images

    def _like(self, offset: int, count: int, device: torch.device) -> "ImagesOnDisk":
        new = object.__new__(ImagesOnDisk)
        new._file, new._offset, new._image_bytes = self._file, offset, self._image_bytes
        new.shape, new.device = torch.Size((count, *self.shape[1:])), device
        return new
