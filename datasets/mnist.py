"""MNIST (LeCun et al. 1998; CC BY-SA 3.0): 60,000 + 10,000 digits of 28×28.

Sources and checksums are torchvision's. The unpacked files are checked here at every load, because
a run that is interrupted while unpacking leaves a truncated file behind.
"""

from pathlib import Path

from torchvision.datasets import MNIST

from datasets.io.download import Remote, check_md5, fetch
from datasets.splits import ImageSplits, held_out

VALIDATION = 5_000
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def load(root: str, download: bool = True) -> ImageSplits:
    """55,000 + 5,000 + 10,000 images (1, 28, 28) from root/MNIST/raw, downloaded if missing."""
    fetch_idx("MNIST", MNIST, root, download)
    for name, md5 in MD5.items():
        check_md5(Path(root, "MNIST", "raw", name), md5)
    return read_idx(MNIST, root, VALIDATION)


def fetch_idx(name: str, source: type[MNIST], root: str, download: bool) -> None:
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


def read_idx(source: type[MNIST], root: str, validation: int) -> ImageSplits:
    """Read the downloaded files, `validation` training images held out."""
    train, test = (source(root, train=train) for train in (True, False))
    images = (train.data[:, None], test.data[:, None])
    return held_out(images, (train.targets, test.targets), validation, tuple(source.classes))
