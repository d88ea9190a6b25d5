"""SVHN (Netzer et al. 2011, non-commercial use): house numbers of 32×32, from torchvision."""

import torch
from torchvision.datasets import SVHN

from datasets.files import fetch
from datasets.splits import ImageSplits, hold_out

VALIDATION = 5_000


def load(root: str, download: bool = True) -> ImageSplits:
    """68,257 + 5,000 + 26,032 images (3, 32, 32) from root/*_32x32.mat (MD5 checked)."""
    fetch(
        "SVHN",
        root,
        download,
        present=lambda: _verified(root),
        get=lambda: [SVHN(root, split, download=True) for split in ("train", "test")],
    )
    splits = [torch.from_numpy(SVHN(root, split).data) for split in ("train", "test")]
    train, validation = hold_out(splits[0], VALIDATION)
    return ImageSplits(train, validation, splits[1])


def _verified(root: str) -> bool:
    try:
        for split in ("train", "test"):
            SVHN(root, split)
    except RuntimeError:  # torchvision's word for missing or corrupted
        return False
    return True
