"""Kuzushiji-MNIST (Clanuwat et al. 2018; CC BY-SA 4.0): 60,000 + 10,000 characters, as MNIST's.

Sources and checksums are torchvision's; see `datasets.fashion_mnist` for what is checked.
"""

from torchvision.datasets import KMNIST

from datasets.fashion_mnist import load_archived
from datasets.splits import ImageSplits

VALIDATION = 5_000


def load(root: str, download: bool = True) -> ImageSplits:
    """55,000 + 5,000 + 10,000 images (1, 28, 28) from root/KMNIST/raw."""
    return load_archived("KMNIST", KMNIST, root, download, VALIDATION)
