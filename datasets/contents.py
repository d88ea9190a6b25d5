"""What a data set holds: levels, repeated images, classes."""

import hashlib
import math
from dataclasses import dataclass

import torch

from datasets.splits import SPLITS, Images, ImageSplits

CHUNK = 4096  # images at a time


@dataclass(frozen=True)
class SplitContents:
    """A split's images. Levels are on the file's scale; mean and deviation on 0 … 255."""

    images: int
    min: int
    max: int
    mean: float
    deviation: float
    repeated: int  # images that the split has more than once
    also_in: dict[str, int]  # by later split: its images that are in this one too


def contents(splits: ImageSplits) -> dict[str, SplitContents]:
    """By split that has images, what it holds."""
    there = [split for split in SPLITS if len(getattr(splits, split))]
    digests = {split: _digests(getattr(splits, split)) for split in there}
    found = {}
    for index, split in enumerate(there):
        own = set(digests[split])
        found[split] = SplitContents(
            images=len(digests[split]),
            **_levels(getattr(splits, split), splits.max_value),
            repeated=len(digests[split]) - len(own),
            also_in={
                later: sum(digest in own for digest in digests[later])
                for later in there[index + 1 :]
            },
        )
    return found


def class_counts(splits: ImageSplits) -> dict[str, list[int]]:
    """By class, how many images every split has; empty where there are no classes."""
    if splits.labels is None:
        return {}
    counts = [torch.bincount(labels, minlength=len(splits.classes)) for labels in splits.labels]
    return dict(zip(splits.classes, torch.stack(counts, 1).tolist(), strict=True))


def _digests(images: Images) -> list[bytes]:
    """Sixteen bytes that stand for each image's pixels."""
    return [
        hashlib.blake2b(image.tobytes(), digest_size=16).digest()
        for part in images.split(CHUNK)
        for image in part.numpy()
    ]


def _levels(images: Images, max_value: int) -> dict[str, float]:
    """Lowest and highest level; mean and deviation on the scale of dataset.standardisation."""
    low, high, first, second, count = 255, 0, 0.0, 0.0, 0
    for part in images.split(CHUNK):
        levels = part.double()
        low, high = min(low, int(part.min())), max(high, int(part.max()))
        first, second = first + float(levels.sum()), second + float(levels.square().sum())
        count += part.numel()
    mean, scale = first / count, 255.0 / max_value
    deviation = math.sqrt(max(second / count - mean**2, 0.0))
    return {"min": low, "max": high, "mean": scale * mean, "deviation": scale * deviation}
