"""MNIST (LeCun et al. 1998; CC BY-SA 3.0): 60,000 + 10,000 digits of 28×28.

torchvision downloads it and checks the archives' MD5; the files unpacked are checked here, at
every load, since a run that was cut off while unpacking leaves a short file behind.
"""

from pathlib import Path

from torchvision.datasets import MNIST

from datasets.files import check_md5, fetch
from datasets.splits import ImageSplits, hold_out

VALIDATION = 5_000
MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


def load(root: str, download: bool = True) -> ImageSplits:
    """55,000 + 5,000 + 10,000 images (1, 28, 28) from root/MNIST/raw, fetched there if missing."""
    folder = Path(root, "MNIST", "raw")
    fetch(
        "MNIST",
        root,
        download,
        present=lambda: all((folder / name).is_file() for name in MD5),
        get=lambda: MNIST(root, download=True),
    )
    for name, md5 in MD5.items():
        check_md5(folder / name, md5)
    splits = [MNIST(root, train=train).data[:, None] for train in (True, False)]
    train, validation = hold_out(splits[0], VALIDATION)
    return ImageSplits(train, validation, splits[1])
