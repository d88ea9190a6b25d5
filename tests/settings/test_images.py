"""The images that a task takes of a split."""

import pytest
import torch

from datasets.splits import ImageSplits
from utils.processes.job import Job
from utils.processes.launch import Processes
from utils.settings.composition import compose, composed_settings
from utils.settings.images import evaluation_batches
from utils.terminal import Terminal

IMAGES = torch.arange(100, dtype=torch.uint8).view(-1, 1, 1, 1)


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [
        (None, 4, [0, 1, 2, 3]),
        (torch.arange(100) % 10, 4, [0, 1, 2, 3]),
        (torch.arange(100) // 10, 4, [0, 25, 50, 75]),  # a folder's
        (torch.arange(100) // 10, 200, list(range(100))),
        (torch.arange(100) // 10, None, list(range(100))),
    ],
)
def test_some_of_a_split_are_the_first_or_of_all_classes(labels, count, expected):
    splits = ImageSplits(IMAGES, IMAGES, IMAGES, labels=labels if labels is None else (labels,) * 3)
    settings = composed_settings(compose(["experiment=digits_ladder"]))
    job = Job(Processes(), torch.device("cpu"), Terminal(False))
    batches = evaluation_batches(settings, splits, "test", job, count)
    assert batches.images.flatten().tolist() == expected
    assert labels is None or torch.equal(batches.labels, labels[expected])
