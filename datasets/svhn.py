"""SVHN (Netzer et al. 2011, non-commercial use only): house numbers of 32×32.

Sources, checksums and reader are torchvision's.
"""

from pathlib import Path

import torch
from torchvision.datasets import SVHN

from datasets.io.download import Remote, fetch, read
from datasets.splits import ImageSplits, held_out

VALIDATION = 5_000


def load(root: str, download: bool = True) -> ImageSplits:
    """68,257 + 5,000 + 26,032 images (3, 32, 32) from root/*_32x32.mat (MD5 checked)."""
    remote = [SVHN.split_list[split] for split in ("train", "test")]
    md5s = {name: md5 for _, name, md5 in remote}
    fetch(
        "SVHN",
        root,
        download,
        present=lambda: all(Path(root, name).is_file() for name in md5s),
        files=[Remote(name, (url,), md5) for url, name, md5 in remote],
    )
    parts = read(Path(root), md5s, lambda: [SVHN(root, split) for split in ("train", "test")])
    images = tuple(torch.from_numpy(part.data) for part in parts)
    labels = tuple(torch.from_numpy(part.labels).long() for part in parts)
    return held_out(images, labels, VALIDATION, tuple("0123456789"))
