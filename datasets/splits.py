"""What every data set loads to: uint8 images in three fixed splits."""

from dataclasses import dataclass

import torch
from torch import Tensor

SPLIT_SEED = 20230219  # of the train/validation split: fixed, so that train.seed never moves it


@dataclass(frozen=True)
class ImageSplits:
    """Images (N, C, H, W) uint8 with levels 0 … max_value; x = 2·image/max_value − 1."""

    train: Tensor
    validation: Tensor
    test: Tensor
    max_value: int = 255

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.train.shape[1:])

    def describe(self) -> str:
        """One line for the log."""
        counts = f"{len(self.train):,} + {len(self.validation):,} + {len(self.test):,}"
        return f"{counts} images (train + validation + test) of {self.image_shape}"


def hold_out(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(all but `count` images, `count` images), drawn once and for all by SPLIT_SEED.

    Raises:
        ValueError: if there are not more than `count` images.
    """
    if len(images) <= count:
        raise ValueError(
            f"Only {len(images)} training images, of which {count} are for validation: check that "
            "dataset.root holds the whole data set."
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    return images[order[count:].sort().values], images[order[:count].sort().values]
