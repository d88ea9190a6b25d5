"""MNIST (LeCun et al. 1998; CC BY-SA 3.0): 60,000 + 10,000 digits of 28×28.

Sources and checksums are torchvision's, which is imported only where files are missing: with what
it imports in turn that takes 1.7 s. The unpacked files are checked here at every load, because a
run that is interrupted while unpacking leaves a truncated file behind.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from datasets.io.download import Remote, check_md5, fetch
from datasets.splits import ImageSplits, held_out

if TYPE_CHECKING:
    from torchvision.datasets import MNIST

VALIDATION = 5_000
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = tuple(f"{digit} - {name}" for digit, name in enumerate(NAMES))


def load(root: str, download: bool = True) -> ImageSplits:
    """55,000 + 5,000 + 10,000 images (1, 28, 28) from root/MNIST/raw, downloaded if missing."""
    folder = Path(root, "MNIST", "raw")
    if not all((folder / name).is_file() for name in MD5):
        from torchvision.datasets import MNIST

        fetch_idx("MNIST", MNIST, root, download)
    for name, md5 in MD5.items():
        check_md5(folder / name, md5)
    return read_idx(folder, CLASSES, VALIDATION)


def fetch_idx(name: str, source: "type[MNIST]", root: str, download: bool) -> None:
    """Download one of torchvision's data sets in the IDX format to root/<class>/raw."""
    folder = f"{source.__name__}/raw"
    fetch(
        name,
        root,
        download,
        present=lambda: all(
            Path(root, folder, archive.removesuffix(".gz")).is_file()
            for archive, _ in source.resources
        ),
        files=[
            Remote(f"{folder}/{archive}", tuple(m + archive for m in source.mirrors), md5)
            for archive, md5 in source.resources
        ],
        unpack=lambda: source(root, download=True),
    )


def read_idx(folder: Path, classes: tuple[str, ...], validation: int) -> ImageSplits:
    """Read a folder's files in the IDX format, `validation` training images held out."""
    images = [_idx(folder / f"{part}-images-idx3-ubyte")[:, None] for part in ("train", "t10k")]
    labels = [_idx(folder / f"{part}-labels-idx1-ubyte").long() for part in ("train", "t10k")]
    return held_out(tuple(images), tuple(labels), validation, classes)


def _idx(path: Path) -> Tensor:
    """The bytes of a checked file, in the shape that its header gives: sizes of four bytes each."""
    content = path.read_bytes()
    dims = content[3]
    shape = np.frombuffer(content, ">i4", dims, offset=4)
    array = np.frombuffer(bytearray(content), np.uint8, offset=4 + 4 * dims)
    return torch.from_numpy(array).view(*shape.tolist())
