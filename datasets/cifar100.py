"""CIFAR-100 (Krizhevsky 2009; its authors ask to be cited): as CIFAR-10, of 100 other classes.

Source, checksums and reader are torchvision's.
"""

from torchvision.datasets import CIFAR100

from datasets.cifar10 import load_pickled
from datasets.splits import ImageSplits

VALIDATION = 5_000


def load(root: str, download: bool = True) -> ImageSplits:
    """45,000 + 5,000 + 10,000 images (3, 32, 32) from root/cifar-100-python (MD5 checked)."""
    return load_pickled("CIFAR-100", CIFAR100, root, download, VALIDATION)
