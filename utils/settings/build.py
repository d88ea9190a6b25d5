"""From checked settings to the objects they describe: model, objective, optimiser, images."""

import os
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any

from torch.optim import Adam, Optimizer
from torch.utils.data import Dataset

from datasets import torch_dataset
from datasets.io import cache
from datasets.io.source import ImageSource
from datasets.splits import ImageSplits
from model.ladder_vae import LadderVAE
from model.objective import Objective
from utils.errors import ConfigError
from utils.settings.groups import NOT_THE_SOURCE, STORED

CALLS = ("_target_", "_partial_")
OBJECTIVE = ("beta_start", "beta_end", "warmup", "free_bits_thr")
EVALUATION = ("is_k", "is_k_prior")


def build(node: dict, key: str) -> Any:
    """What the `_target_` of settings[key] makes of its neighbours, which are its arguments.

    With `_partial_: true` a function that finishes it. Arguments may have a `_target_` themselves.
    Nothing is interpolated here: settings are data. Which targets may be called was decided where
    the settings came from (`utils.settings.trust.check_targets`).

    Raises:
        ConfigError: if it cannot be found or refuses its settings.
    """
    if not node:  # a choice of none, as in train/scheduler=none
        return None
    target = f"{key}._target_={node.get('_target_')}"
    arguments = {k: _built(v, f"{key}.{k}") for k, v in node.items() if k not in CALLS}
    try:
        function = resolve_name(str(node.get("_target_")))
    except (ImportError, AttributeError, ValueError) as error:
        raise _failed(target, error) from error
    make = partial(_call, target, function, **arguments)
    return make if node.get("_partial_") else make()


def _built(value: Any, key: str) -> Any:
    if isinstance(value, dict) and "_target_" in value:
        return build(value, key)
    if isinstance(value, dict):
        return {name: _built(inner, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, list):
        return [_built(inner, f"{key}.{index}") for index, inner in enumerate(value)]
    return value


def _call(target: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(…), with what a wrong target or argument raises as a ConfigError."""
    try:
        return function(*args, **kwargs)
    except ValueError:
        raise
    except Exception as error:
        raise _failed(target, error) from error


def _failed(target: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())
    return ConfigError(f"{target} failed ({reason}): correct it or its settings.")


def build_objective(settings: dict) -> Objective:
    """The training loss."""
    return Objective(**{key: settings["model"][key] for key in OBJECTIVE})


def build_model(settings: dict) -> LadderVAE:
    """The untrained model."""
    model, dataset = settings["model"], settings["dataset"]
    parts = {k: v for k, v in model.items() if k not in (*OBJECTIVE, *EVALUATION)}
    for part in ("encoder", "decoder"):
        parts[part] = build(model[part], f"model.{part}")
    size = dataset["image_size"]
    return LadderVAE(
        image_shape=(dataset["channels"], size, size),
        standardisation=dataset["standardisation"],
        levels=dataset["levels"],
        **parts,
    )


def build_optimizer(settings: dict, model: LadderVAE) -> tuple[Optimizer, Any]:
    """The optimiser of all of the model's parameters, and its schedule (None: constant).

    Adam and AdamW step in one kernel: 3 ms instead of 12 for mnist_dct_ladder on two CPU cores.
    """
    train = settings["train"]
    optimizer = build(train["optimizer"], "train.optimizer")(model.parameters())
    if isinstance(optimizer, Adam):
        for group in optimizer.param_groups:
            group["fused"] = True
    make_scheduler = build(train["scheduler"], "train.scheduler")
    return optimizer, make_scheduler(optimizer) if make_scheduler else None


def load_images(settings: dict) -> ImageSplits:
    """Read (and, where missing, fetch) the data set.

    Raises:
        ConfigError: if the images have another shape than dataset.channels and image_size say.
    """
    dataset = settings["dataset"]
    source = {key: value for key, value in dataset.items() if key not in NOT_THE_SOURCE}
    if "root" in source:
        source["root"] = os.path.expanduser(source["root"])
    splits = build(source, "dataset")
    if not isinstance(splits, (ImageSplits, ImageSource)):
        splits = _from_torch(splits, source, dataset)
    if isinstance(splits, ImageSource):
        how = {key: dataset[key] for key in STORED if key in dataset}
        splits = cache.load(splits, **{**how, "cache": os.path.expanduser(dataset["cache"])})
    expected = (dataset["channels"], dataset["image_size"], dataset["image_size"])
    if splits.image_shape != expected:
        channels, height, _ = splits.image_shape
        raise ConfigError(
            f"dataset.channels={expected[0]} and dataset.image_size={expected[1]} don't fit "
            f"the images of {dataset['name']}, {splits.image_shape}: use {channels} and {height}."
        )
    if splits.max_value != dataset["levels"] - 1:
        raise ConfigError(
            f"dataset.levels={dataset['levels']} doesn't fit the images of {dataset['name']}, "
            f"whose largest level is {splits.max_value}: use {splits.max_value + 1}."
        )
    return splits


def _from_torch(images: Any, source: dict, dataset: dict) -> ImageSource:
    """A torch Dataset's images; dataset.test_arguments give its test set, where it has one."""
    target = source["_target_"]
    if not isinstance(images, Dataset):
        raise ConfigError(
            f"dataset._target_={target} gives a {type(images).__name__}: name a class of "
            "torch.utils.data.Dataset, or a function that returns datasets.splits.ImageSplits."
        )
    if missing := [key for key in (*STORED, "test_arguments") if key not in dataset]:
        raise ConfigError(
            f"dataset._target_={target} is a torch Dataset, for which dataset.{missing[0]} is "
            "missing: use it with dataset=custom."
        )
    parts, arguments = {"all": images}, dataset["test_arguments"]
    if arguments is not None:
        parts = {"train": images, "test": build({**source, **arguments}, "dataset")}
    return torch_dataset.image_source(parts, target, dataset["levels"] - 1)
