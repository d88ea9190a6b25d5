"""Few random images in place of the data sets that would have to be fetched."""

from importlib import import_module

import torch

from datasets.splits import ImageSplits

SHAPES = {name: (1, 28) for name in ("mnist", "fashion_mnist", "kmnist", "omniglot")}
SHAPES |= {name: (3, 32) for name in ("cifar10", "cifar100", "svhn")}
TRAIN, HELD_OUT = 8, 4


def images(channels: int, size: int) -> ImageSplits:
    """Eight to train on, and four in each of the other splits."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(256, (TRAIN + 2 * HELD_OUT, channels, size, size), generator=generator)
    return ImageSplits(*drawn.byte().split([TRAIN, HELD_OUT, HELD_OUT]), 255)


def take_their_place() -> None:
    """In this process, for every source of datasets/ that has files."""
    for name, shape in SHAPES.items():

        def load(root: str, download: bool = True, shape: tuple[int, int] = shape) -> ImageSplits:
            return images(*shape)

        import_module(f"datasets.{name}").load = load
