"""From checked settings to images in three splits, and to batches of them."""

import os
from typing import TYPE_CHECKING, Any

from datasets.fingerprint import fingerprint
from datasets.loaders import EvaluationBatches, TrainBatches, few_of
from datasets.splits import SPLITS, ImageSplits
from utils.errors import ConfigError
from utils.processes.collectives import check_same, main_first
from utils.processes.job import Job
from utils.settings.parts import build
from utils.settings.schema import Settings
from utils.settings.schema.dataset import Dataset

if TYPE_CHECKING:
    from datasets.io.source import ImageSource

DESCRIPTION = (  # keys that every data set has, beside those of its source
    "name",
    "image_size",
    "channels",
    "levels",
    "standardisation",
    "horizontal_flip",
    "data_module",
    "likelihood",
    "test_arguments",
)
STORED = ("validation_share", "test_share", "memory_limit", "cache")  # of images read one by one


def load_images(settings: Settings) -> ImageSplits:
    """Read (and, where missing, fetch) the data set.

    Raises:
        ConfigError: if the images have another shape than dataset.channels and image_size say.
    """
    from datasets.io import cache  # not at every start
    from datasets.io.source import ImageSource

    dataset, plain = settings.dataset, settings.plain["dataset"]
    source = {key: v for key, v in plain.items() if key not in (*DESCRIPTION, *STORED)}
    if dataset.root is not None:
        source["root"] = os.path.expanduser(dataset.root)
    splits = build(source, "dataset")
    if not isinstance(splits, (ImageSplits, ImageSource)):
        splits = _from_torch(splits, source, dataset)
    if isinstance(splits, ImageSource):
        how = {key: plain[key] for key in STORED if key in plain}
        splits = cache.load(splits, **{**how, "cache": os.path.expanduser(dataset.cache)})
    _check_description(splits, dataset)
    return splits


def _check_description(splits: ImageSplits, dataset: Dataset) -> None:
    """The images are what the settings say."""
    expected = (dataset.channels, dataset.image_size, dataset.image_size)
    if splits.image_shape != expected:
        channels, height, _ = splits.image_shape
        raise ConfigError(
            f"dataset.channels={expected[0]} and dataset.image_size={expected[1]} don't fit "
            f"the images of {dataset.name}, {splits.image_shape}: use {channels} and {height}."
        )
    if splits.max_value != dataset.levels - 1:
        raise ConfigError(
            f"dataset.levels={dataset.levels} doesn't fit the images of {dataset.name}, "
            f"whose largest level is {splits.max_value}: use {splits.max_value + 1}."
        )


def _from_torch(images: Any, source: dict, dataset: Dataset) -> "ImageSource":
    """A torch Dataset's images; dataset.test_arguments give its test set, where it has one."""
    from torch.utils.data import Dataset as TorchDataset  # not at every start

    from datasets import torch_dataset

    target = dataset.target
    if not isinstance(images, TorchDataset):
        raise ConfigError(
            f"dataset._target_={target} gives a {type(images).__name__}: name a class of "
            "torch.utils.data.Dataset, or a function that returns datasets.splits.ImageSplits."
        )
    given = dataset.model_fields_set
    if missing := [key for key in (*STORED, "test_arguments") if key not in given]:
        raise ConfigError(
            f"dataset._target_={target} is a torch Dataset, for which dataset.{missing[0]} is "
            "missing: use it with dataset=custom."
        )
    parts = {"all": images}
    if dataset.test_arguments is not None:
        test = build({**source, **dataset.test_arguments}, "dataset")
        parts = {"train": images, "test": test}
    return torch_dataset.image_source(parts, target, dataset.levels - 1)


def splits_of(settings: Settings, job: Job) -> ImageSplits:
    """The data set, read by the main process first: it may have to be fetched.

    Raises:
        ConfigError: also where the processes have read different images.
    """
    splits = main_first(job.processes, lambda: load_images(settings))
    if job.processes.world > 1:
        found = {name: getattr(splits, name) for name in SPLITS if len(getattr(splits, name))}
        check_same({f"the {name} images": fingerprint(images) for name, images in found.items()})
    return splits


def train_batches(settings: Settings, splits: ImageSplits, job: Job) -> TrainBatches:
    """This process's share of the training set, on its device."""
    return TrainBatches(
        splits.train.to(job.device),
        splits.max_value,
        settings.dataset.data_module.batch_size,
        settings.train.seed,
        settings.dataset.horizontal_flip,
        job.processes.rank,
        job.processes.world,
        settings.train.acc_grad,
    )


def evaluation_batches(
    settings: Settings,
    splits: ImageSplits,
    split: str,
    job: Job,
    num_images: int | None = None,
) -> EvaluationBatches:
    """This process's share of a split, or of num_images of it (`few_of`), on its device."""
    images = getattr(splits, split)
    labels = splits.labels and splits.labels[SPLITS.index(split)]
    taken = few_of(len(images), num_images, labels)
    return EvaluationBatches(
        images[taken].to(job.device),
        splits.max_value,
        settings.dataset.data_module.test_batch_size,
        job.processes.rank,
        job.processes.world,
        labels if labels is None else labels[taken],
    )
