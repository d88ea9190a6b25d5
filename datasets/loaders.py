"""Batches: uint8 images gathered and normalised on the device; no per-item Python.

What a step trains on is a function of (seed, epoch, batch), so an interrupted epoch can go on
anywhere; evaluation shards hold every image exactly once, for any number of processes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.io.on_disk import ImagesOnDisk
from datasets.splits import Images


@dataclass(frozen=True)
class Batch:
    """x (B, C, H, W) in [−1, 1], channels last; ids (B,): the images' indices in their split."""

    x: Tensor
    ids: Tensor


def normalise(images: Tensor, max_value: int) -> Tensor:
    """uint8 levels 0 … max_value -> float32 in [−1, 1], channels last."""
    x = images.float().mul_(2.0 / max_value).sub_(1.0)
    return x.contiguous(memory_format=torch.channels_last)


def gathered(images: Images, indices: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of the indices (B,), on the CPU: images (B, …) and indices on the images' device.

    All indices go there at once: a copy for each batch would make the host wait.
    """
    if not indices:
        return
    ids = torch.cat(list(indices)).to(images.device).split([len(part) for part in indices])
    if isinstance(images, ImagesOnDisk):
        yield from zip(images.read_ahead(indices), ids, strict=True)
    else:
        yield from ((images[part], part) for part in ids)


def evenly_spaced(total: int, count: int) -> Tensor:
    """Indices of `count` images spread over `total`, which may be sorted by class; all if fewer."""
    return torch.arange(min(count, total)) * total // max(min(count, total), 1)


def few_of(total: int, count: int | None, labels: Tensor | None) -> slice | Tensor:
    """Which `count` of `total` images to take: the first, as a slice; None: all.

    labels: their class numbers (total,). Of images sorted by class, as a folder's are, the first
    would be of one class: then indices of evenly spaced ones.
    """
    by_class = labels is not None and bool((labels.diff() >= 0).all())
    return evenly_spaced(total, count) if by_class and (count or total) < total else slice(count)


class TrainBatches:
    """The training set in a fresh order each epoch, in global batches of which this is one share.

    The incomplete batch at an epoch's end is left out. `batch_size` is global; every process takes
    its rows of it, as `micro_batches` pieces (gradient accumulation).

    Raises:
        ValueError: if the batch cannot be divided, or there are fewer images than one batch.
    """

    def __init__(
        self,
        images: Images,
        max_value: int,
        batch_size: int,
        seed: int,
        horizontal_flip: bool = False,
        rank: int = 0,
        world: int = 1,
        micro_batches: int = 1,
    ):
        if batch_size % (world * micro_batches):
            raise ValueError(
                f"dataset.data_module.batch_size={batch_size} cannot be divided over {world} "
                f"process(es) × train.acc_grad={micro_batches}: "
                f"use a multiple of {world * micro_batches}."
            )
        if len(images) < batch_size:
            raise ValueError(
                f"dataset.data_module.batch_size={batch_size} is more than the {len(images)} "
                "training images: use a smaller one."
            )
        self.images, self.max_value, self.batch_size = images, max_value, batch_size
        self.seed, self.flip = seed, horizontal_flip
        self.rank, self.world, self.micro_batches = rank, world, micro_batches

    def __len__(self) -> int:
        """Optimiser steps per epoch."""
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """For each step from `start` on: this process's share, as `micro_batches` batches."""
        order, flipped = self.order(epoch)
        flipped = flipped.to(self.images.device)
        for images, ids in gathered(self.images, list(order[start:])):
            yield self.divided(images, ids, flipped)

    def order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Of an epoch, on the CPU: this process's indices in each step (steps, B), int64; which of
        all images are flipped, (N,) bool.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        flipped = torch.rand(len(self.images), generator=generator) < 0.5
        steps = order[: len(self) * self.batch_size].view(len(self), self.world, -1)
        return steps[:, self.rank], flipped

    def divided(self, images: Tensor, ids: Tensor, flipped: Tensor) -> list[Batch]:
        """images (B, …) uint8, their indices (B,), `order`'s second (N,) -> the micro-batches."""
        x = normalise(images, self.max_value)
        if self.flip:
            x = torch.where(flipped[ids].view(-1, 1, 1, 1), x.flip(3), x)
        pieces = zip(x.chunk(self.micro_batches), ids.chunk(self.micro_batches), strict=True)
        return [Batch(*piece) for piece in pieces]


class EvaluationBatches:
    """Every image once over all processes, in order: process r has images r, r + world, ….

    labels: class numbers (N,) of all images, where there are any.
    A process without any has one batch of no images, from which its sums get their shapes.

    Raises:
        ValueError: if there are no images.
    """

    def __init__(
        self,
        images: Images,
        max_value: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        labels: Tensor | None = None,
    ):
        if len(images) == 0:
            raise ValueError(
                "No images to evaluate: the split is empty; check dataset.root, or use another "
                "task.split."
            )
        self.images, self.max_value, self.batch_size = images, max_value, batch_size
        self.labels = labels
        self.ids = torch.arange(len(images))[rank::world]

    def __len__(self) -> int:
        """Batches on this process."""
        return max(1, -(-len(self.ids) // self.batch_size))

    def examples(self, count: int) -> Tensor:
        """`few_of` the whole split: (count, C, H, W) in [−1, 1]."""
        total = len(self.images)
        return self.at(torch.arange(total)[few_of(total, count, self.labels)])

    def at(self, ids: Tensor) -> Tensor:
        """The images of the whole split with these indices (n,): (n, C, H, W) in [−1, 1]."""
        return normalise(self.images[ids.to(self.images.device)], self.max_value)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of at most batch_size images."""
        for images, ids in gathered(self.images, self.ids.split(self.batch_size)):
            yield Batch(normalise(images, self.max_value), ids)
