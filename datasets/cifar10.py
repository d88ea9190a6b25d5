"""CIFAR-10 (Krizhevsky 2009): 50,000 + 10,000 colour images of 32×32; torchvision fetches it."""

import torch
from torchvision.datasets import CIFAR10

from datasets.files import fetch
from datasets.splits import ImageSplits, hold_out

VALIDATION = 5_000


def load(root: str, download: bool = True) -> ImageSplits:
    """45,000 + 5,000 + 10,000 images (3, 32, 32) from root/cifar-10-batches-py (MD5 checked)."""
    fetch(
        "CIFAR-10",
        root,
        download,
        present=lambda: _verified(root),
        get=lambda: CIFAR10(root, download=True),
    )
    arrays = [CIFAR10(root, train=train).data for train in (True, False)]  # (N, 32, 32, 3)
    splits = [torch.from_numpy(a).permute(0, 3, 1, 2).contiguous() for a in arrays]
    train, validation = hold_out(splits[0], VALIDATION)
    return ImageSplits(train, validation, splits[1])


def _verified(root: str) -> bool:
    try:
        CIFAR10(root)
    except RuntimeError:  # torchvision's word for missing or corrupted
        return False
    return True
