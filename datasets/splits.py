"""The common form of every data set: uint8 images in three fixed splits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.io.on_disk import ImagesOnDisk

SPLIT_SEED = 20230219  # of the train/validation split, which does not depend on train.seed
SPLITS = ("train", "validation", "test")
Images = Tensor | ImagesOnDisk


@dataclass(frozen=True)
class ImageSplits:
    """Images (N, C, H, W) uint8 with levels 0 … max_value; x = 2·image/max_value − 1.

    labels: class numbers (N,) of the three splits, indices into `classes`, where the source has
    them; they are never trained on. notes: sentences on what was left out, and why.
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
        """The number of images of each split, as text."""
        return " + ".join(f"{len(getattr(self, split)):,}" for split in SPLITS)


def hold_out(images: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Split into (all but `count` images, `count` images), by SPLIT_SEED alone.

    Labels (N,) are split in the same way as their images (N, C, H, W).

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
    return images.index_select(0, rest), images.index_select(0, held)  # faster than indexing


def held_out(
    images: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    count: int,
    classes: tuple[str, ...],
) -> ImageSplits:
    """Splits from (training, test) images and labels: `count` training images for validation."""
    train, validation = hold_out(images[0], count)
    train_labels, validation_labels = hold_out(labels[0], count)
    return ImageSplits(
        train,
        validation,
        images[1],
        labels=(train_labels, validation_labels, labels[1]),
        classes=classes,
    )
