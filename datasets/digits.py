"""scikit-learn's handwritten digits: 1,797 images of 8×8 with 17 grey levels, no download.

UCI ML hand-written digits (Alpaydin & Kaynak 1998), CC BY 4.0; shipped inside scikit-learn.
"""

import torch
from sklearn.datasets import load_digits

from datasets.splits import ImageSplits, hold_out

LEVELS = 16
TEST = 297
VALIDATION = 200


def load() -> ImageSplits:
    """1,300 + 200 + 297 images (1, 8, 8), levels 0 … 16."""
    source = load_digits()
    images = torch.from_numpy(source.images).to(torch.uint8)[:, None]
    (train, validation, test), labels = map(_split, (images, torch.from_numpy(source.target)))
    names = tuple("0123456789")
    return ImageSplits(train, validation, test, LEVELS, labels=labels, classes=names)


def _split(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rest, test = hold_out(rows, TEST)
    return (*hold_out(rest, VALIDATION), test)
