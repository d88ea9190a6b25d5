"""dataset: where images come from, and what they are."""

from typing import Annotated, Any, Literal

from pydantic import Field

from model.likelihoods import LIKELIHOODS
from utils.settings.kinds import (
    FREE,
    Wanted,
    accepts,
    is_path_component,
)
from utils.settings.schema.types import ABSENT, Count, Group, NonNegative, Part, Path


class DataModule(Group):
    """dataset.data_module: the sizes of batches."""

    batch_size: Count
    test_batch_size: Annotated[Count, FREE]


class Dataset(Part):
    """dataset: where images come from, and what they are."""

    name: Annotated[
        str,
        accepts(is_path_component),
        Wanted("a text without slashes and control characters"),
    ]
    image_size: Annotated[int, Field(ge=2, le=1024)]
    channels: Literal[1, 3]
    levels: Annotated[int, Field(ge=2, le=256)]
    standardisation: Annotated[list[float], Field(min_length=2, max_length=2)]
    horizontal_flip: bool
    data_module: DataModule
    likelihood: Annotated[Literal[tuple(LIKELIHOODS)], FREE] = ABSENT  # model.likelihood's default
    root: Annotated[Path, FREE] = ABSENT
    download: Annotated[bool, FREE] = ABSENT
    size: Annotated[int, Field(ge=2, le=1024)] = ABSENT
    shape: Annotated[
        list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=3, max_length=3)
    ] = ABSENT
    validation_share: Annotated[float, Field(ge=0, le=0.9)] = ABSENT
    test_share: Annotated[float, Field(ge=0, le=0.9)] = ABSENT
    test_arguments: Annotated[
        dict[str, Any] | None, Wanted("null, or arguments as in {train: false}")
    ] = ABSENT
    memory_limit: Annotated[NonNegative, FREE] = ABSENT
    cache: Annotated[Path, FREE] = ABSENT
