"""What every data set loads to: uint8 images in three fixed splits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.io.on_disk import ImagesOnDisk

SPLIT_SEED = 20230219  # of the train/validation split: fixed, so that train.seed never moves it
SPLITS = ("train", "validation", "test")
Images = Tensor | ImagesOnDisk


@dataclass(frozen=True)
class ImageSplits:
    """Images (N, C, H, W) uint8 with levels 0 … max_value; x = 2·image/max_value − 1.

    labels: class numbers (N,) of the three splits, indices into `classes`, where the source has
    them; nothing is trained on them. notes: sentences on what was left out, and why.
    """

    train: Images
    validation: Images
    test: Images
    max_value: int = 255
    labels: tuple[Tensor, Tensor, Tensor] | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.train.shape[1:])

    @property
    def counts(self) -> str:
        """How many images each split has."""
        return " + ".join(f"{len(getattr(self, split)):,}" for split in SPLITS)


def hold_out(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(all but `count` images, `count` images), drawn once and for all by SPLIT_SEED.

    The same for labels (N,) as for the images (N, C, H, W) that they belong to.

    Raises:
        ValueError: if there are not more than `count` images.
    """
    if len(images) <= count:
        raise ValueError(
            f"Only {len(images)} training images, of which {count} are for validation: check that "
            "dataset.root holds the whole data set."
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
    rest, held = (part.sort().values for part in (order[count:], order[:count]))
    return images.index_select(0, rest), images.index_select(0, held)  # faster than by [ ]


def held_out(
    images: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    count: int,
    classes: tuple[str, ...],
) -> ImageSplits:
    """From (training, test) images and labels: `count` of the former are for validation."""
    train, validation = hold_out(images[0], count)
    train_labels, validation_labels = hold_out(labels[0], count)
    return ImageSplits(
        train,
        validation,
        images[1],
        labels=(train_labels, validation_labels, labels[1]),
        classes=classes,
    )
