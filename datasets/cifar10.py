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
    folder = Path(root, CIFAR10.base_folder)
    md5s = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    fetch(
        "CIFAR-10",
        root,
        download,
        present=lambda: all((folder / name).is_file() for name in md5s),
        files=[Remote(CIFAR10.filename, (CIFAR10.url,), CIFAR10.tgz_md5)],
        unpack=lambda: CIFAR10(root, download=True),
    )
    parts = read(folder, md5s, lambda: [CIFAR10(root, train=train) for train in (True, False)])
    images = tuple(torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous() for p in parts)
    labels = tuple(torch.tensor(part.targets) for part in parts)
    return held_out(images, labels, VALIDATION, tuple(parts[0].classes))
