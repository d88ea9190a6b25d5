"""A data set of somebody's own: the digits, with few images held out, so that scores are quick."""

from datasets import digits
from datasets.splits import ImageSplits

FEW = 30


def load() -> ImageSplits:
    """1,300 + 30 + 30 images (1, 8, 8)."""
    whole = digits.load()
    return ImageSplits(whole.train, whole.validation[:FEW], whole.test[:FEW], whole.max_value)


def none() -> ImageSplits:
    """As `load`, with nothing to test on."""
    whole = load()
    return ImageSplits(whole.train, whole.validation, whole.test[:0], whole.max_value)
