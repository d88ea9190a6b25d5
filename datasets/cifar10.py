"""CIFAR-10 (Krizhevsky 2009; its authors ask to be cited): 50,000 + 10,000 colour images of 32×32.

Source, checksums and reader are torchvision's.
"""

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10

from datasets.io.download import Remote, fetch, read
from datasets.splits import ImageSplits, held_out

VALIDATION = 5_000


def load(root: str, download: bool = True) -> ImageSplits:
    """45,000 + 5,000 + 10,000 images (3, 32, 32) from root/cifar-10-batches-py (MD5 checked)."""
    return load_pickled("CIFAR-10", CIFAR10, root, download, VALIDATION)


def load_pickled(
    name: str, source: type[CIFAR10], root: str, download: bool, validation: int
) -> ImageSplits:
    """One of torchvision's two CIFAR data sets, `validation` training images held out."""
    folder = Path(root, source.base_folder)
    names = (source.meta["filename"], source.meta["md5"])
    md5s = dict([*source.train_list, *source.test_list, names])
    fetch(
        name,
        root,
        download,
        present=lambda: all((folder / file).is_file() for file in md5s),
        files=[Remote(source.filename, (source.url,), source.tgz_md5)],
        unpack=lambda: source(root, download=True),
    )
    parts = read(folder, md5s, lambda: [source(root, train=train) for train in (True, False)])
    images = tuple(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous() for p in parts)
    labels = tuple(torch.tensor(part.targets) for part in parts)
    return held_out(images, labels, validation, tuple(parts[0].classes))
