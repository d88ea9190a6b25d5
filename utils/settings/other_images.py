"""The second data set of task=ood: images that meet a model's in shape and levels."""

from omegaconf import MISSING, DictConfig, OmegaConf

from utils.errors import ConfigError
from utils.settings.check import check
from utils.settings.composition import compose, resolve
from utils.settings.schema import Settings
from utils.settings.schema.ood import Ood

SHAPE = ("channels", "image_size", "levels")


def with_images_of(settings: Settings, ood: Ood) -> Settings:
    """The settings of a model, its data set replaced by the one of ood.dataset.

    A folder of images is read in the model's size and channels.

    Raises:
        ConfigError: if there is none of this name, or its images are of another shape.
    """
    if ood.dataset is None:
        raise ConfigError(
            "ood.dataset is not set: task=ood needs ood.dataset=… (a data set of configs/dataset, "
            "as in ood.dataset=omniglot)."
        )
    try:
        composed = compose([f"dataset={ood.dataset}"])
        _describe(composed.dataset, settings, ood)
        _check_complete(composed.dataset, ood)
        dataset = resolve({"dataset": composed.dataset})["dataset"]
    except ConfigError as error:
        raise ConfigError(f"ood.{error}") from error
    known = settings.plain["dataset"]
    if any(dataset[key] != known[key] for key in SHAPE):
        raise ConfigError(
            f"ood.dataset={ood.dataset} has images of {_shape(dataset)}, the model's are of "
            f"{_shape(known)}: name a data set of that shape."
        )
    dataset["data_module"] = known["data_module"]
    return check({**settings.plain, "dataset": dataset})


def _describe(dataset: DictConfig, settings: Settings, ood: Ood) -> None:
    """Fill in where it is, and the size of what can be scaled."""
    known = settings.dataset
    if ood.root is not None:
        if "root" not in list(dataset):  # `in` alone misses one without a value
            raise ConfigError(
                f"root={ood.root} is not read by dataset={ood.dataset}: leave it out."
            )
        dataset.root = ood.root
    if known.download is False and "download" in dataset:
        dataset.download = False
    if "size" in dataset:
        dataset.size = known.image_size
    if "shape" in dataset:  # of images that are decoded in grey or in colour
        dataset.channels = known.channels


def _check_complete(dataset: DictConfig, ood: Ood) -> None:
    raw = OmegaConf.to_container(dataset, resolve=False)
    missing = [key for key, value in raw.items() if value == MISSING]
    if "root" in missing:
        raise ConfigError(f"root is not set: ood.dataset={ood.dataset} needs ood.root=….")
    if missing:
        raise ConfigError(
            f"dataset={ood.dataset} leaves open {', '.join(missing)}: name a data set of "
            "configs/dataset that says what it is, or add one."
        )


def _shape(dataset: dict) -> str:
    return "{0}×{1}×{1} with {2} levels".format(*(dataset[key] for key in SHAPE))


def label(settings: Settings, ood: Ood) -> str:
    """The other data set's name in tables and of the folder."""
    name = settings.dataset.name
    return f"{name}_inverted" if ood.invert else name
