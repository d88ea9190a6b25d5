"""Any map-style torch.utils.data.Dataset as a source of images; it needs no adapter."""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from datasets.io.decode import opaque
from datasets.io.source import ImageSource

SAMPLED = 1_000  # items whose pixels decide whether a data set has changed


def image_source(parts: Mapping[str, Dataset], source: str, max_value: int) -> ImageSource:
    """The images of Datasets, each named by its index; see `ImageSource` for the parts.

    source: the name for messages. An item is an image, or begins with one: a PIL image, an array or
    a tensor, uint8 with levels 0 … max_value or floats in [0, 1], as (H, W), (C, H, W) or
    (H, W, C), all of one shape.

    Raises:
        ValueError: if an item is none of these, or a Dataset has no length.
    """
    _check_map_style(parts, source)
    first = image_of(next(iter(parts.values()))[0], max_value, f"{source}, item 0")

    def read(part: str, index: int) -> np.ndarray:
        where = f"{source}, item {index}"
        image = image_of(parts[part][index], max_value, where)
        if image.shape != first.shape:
            raise ValueError(
                f"{where} has the shape {image.shape}, item 0 {first.shape}: a data set's images "
                "must have one shape, so crop or resize them in it."
            )
        return image

    return ImageSource(
        source=source,
        identity=_identity(parts, read),
        shape=first.shape,
        parts={part: [str(n) for n in range(len(items))] for part, items in parts.items()},
        read=read,
        parallel=False,  # a Dataset need not be thread-safe
        max_value=max_value,
    )


def _check_map_style(parts: Mapping[str, Dataset], source: str) -> None:
    """Raise ValueError where a Dataset has no length, no items by index, or is empty."""
    for part, items in parts.items():
        if not hasattr(items, "__len__") or not hasattr(items, "__getitem__"):
            raise ValueError(
                f"dataset._target_={source} has no length or no items ({part}): it must be a "
                "map-style torch.utils.data.Dataset."
            )
        if len(items) == 0:
            raise ValueError(
                f"dataset._target_={source} has no images ({part}): check its settings."
            )


def image_of(item: object, max_value: int, where: str) -> np.ndarray:
    """An item's image as (C, H, W) uint8; where: the item's name for messages.

    Raises:
        ValueError: if the item is no image, or has levels out of range.
    """
    image = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(image, Image.Image) and image.mode not in ("L", "RGB"):  # else indices, for one
        grey = image.mode in ("1", "LA") or image.mode.startswith("I")
        image = opaque(image).convert("L" if grey else "RGB")
    image = image.numpy(force=True) if isinstance(image, torch.Tensor) else np.asarray(image)
    described = f"{image.dtype} {image.shape}"
    if image.ndim == 2:
        image = image[None]
    elif image.ndim == 3 and image.shape[0] not in (1, 3):
        image = image.transpose(2, 0, 1)
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"{where} is no image ({described}): use (C, H, W), C 1 or 3.")
    levels = image
    if np.issubdtype(image.dtype, np.floating):
        levels = np.rint(image * max_value)
    elif image.dtype != np.uint8:
        raise ValueError(f"{where} is {image.dtype}: use uint8, or floats in [0, 1].")
    if not (levels.min() >= 0 and levels.max() <= max_value):
        raise ValueError(
            f"{where} has levels from {levels.min():g} to {levels.max():g} where dataset.levels="
            f"{max_value + 1} allows 0 to {max_value} (floats: 0 to 1): leave out what normalises "
            "them, or correct dataset.levels."
        )
    return np.ascontiguousarray(levels.astype(np.uint8))


def _identity(parts: Mapping[str, Dataset], read: Callable[[str, int], np.ndarray]) -> str:
    """A hash of the lengths and of the pixels of up to SAMPLED evenly spaced items per part."""
    sha256 = hashlib.sha256()
    for part, items in parts.items():
        sha256.update(f"{part} {len(items)}".encode())
        for index in np.unique(np.linspace(0, len(items) - 1, SAMPLED).astype(int)).tolist():
            sha256.update(read(part, index).tobytes())
    return sha256.hexdigest()
