"""Types that several groups of settings share."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from utils.settings.kinds import (
    Wanted,
)

ABSENT: Any = None  # the default of keys that only some choices have: given, null is not valid
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, le=0.999999), Wanted("a number from 0 to under 1")]
Text = Annotated[str, Field(min_length=1)]
Path = Annotated[Text, Wanted("a folder or a file")]
Target = Annotated[Text, Wanted("the dotted path of a class or function")]


class Group(BaseModel):
    """Settings under one key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )


class Part(Group):
    """A class or function with its arguments: the keys beside `_target_`."""

    model_config = ConfigDict(extra="allow")

    target: Target = Field(alias="_target_")


class PartialPart(Part):
    """One that is finished later, with what only the program knows."""

    partial: Literal[True] = Field(alias="_partial_")
