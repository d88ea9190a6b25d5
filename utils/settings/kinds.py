"""Kinds of values beyond what a type says, and what to say where a value is of another kind."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

BOUNDS = ("gt", "ge", "le", "min_length", "max_length")
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # one component of a path, W&B's too


@dataclass(frozen=True)
class Wanted:
    """What to say that a value should be, where its type alone doesn't."""

    text: str


@dataclass(frozen=True)
class Free:
    """Marks a setting that does not determine the result: another value is the same run."""


FREE = Free()


def accepts(predicate: Callable[[Any], bool]) -> AfterValidator:
    """A further condition on a value."""

    def check(value: Any) -> Any:
        if not predicate(value):
            raise ValueError("not accepted")
        return value

    return AfterValidator(check)


def is_safe_name(value: str) -> bool:
    """Whether it names a folder and a W&B artifact everywhere."""
    return bool(SAFE_NAME.fullmatch(value))


def is_path_component(value: str) -> bool:
    """Whether a folder may be called so."""
    return value.isprintable() and value not in ("", ".", "..") and "/" not in value


def is_device(value: str) -> bool:
    """auto, cpu, mps, cuda or cuda:INDEX."""
    kind, _, index = value.partition(":")
    return value in ("auto", "cpu", "cuda", "mps") or (kind == "cuda" and index.isdigit())


def is_number_of_threads(value: str | int) -> bool:
    """auto, or a number."""
    return value == "auto" or (isinstance(value, int) and 1 <= value <= 1024)


def is_period(value: str | float) -> bool:
    """Minutes, or '500 steps'."""
    if isinstance(value, str):
        return bool(re.fullmatch(r"[1-9]\d* steps?", value))
    return value >= 0


@dataclass(frozen=True)
class Key:
    """One setting: what it may hold, and whether it is free (see `Free`)."""

    annotation: Any
    metadata: tuple[Any, ...] = ()
    secret: bool = False

    @property
    def free(self) -> bool:
        """Whether another value is the same run."""
        return any(isinstance(item, Free) for item in self.metadata)

    @property
    def wanted(self) -> str:
        """What it should be, in words."""
        return describe(self.annotation, self.metadata)

    def accepts(self, value: Any) -> bool:
        """Whether the value is valid."""
        try:
            self._adapter.validate_python(value)
        except ValidationError:
            return False
        return True

    def complain(self, name: str, value: Any) -> str:
        """The sentence about a wrong value."""
        shown = "…" if self.secret else f"{value!r:.200}"
        return f"{name}={shown} is not valid: use {self.wanted}."

    @cached_property
    def _adapter(self) -> TypeAdapter:
        annotated = Annotated[self.annotation, *self.metadata] if self.metadata else self.annotation
        config = ConfigDict(strict=True, allow_inf_nan=False)
        return TypeAdapter(annotated, config=config)


def keys(group: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Key]]:
    """(dotted name, key) of every setting in a group and the groups below it."""
    for name, field in group.model_fields.items():
        name = f"{prefix}{field.alias or name}"
        below = _groups(field)
        for inner in below:
            yield from keys(inner, f"{name}.")
        if not below:
            yield name, Key(field.annotation, tuple(field.metadata), name == "wandb.api_key")


def _groups(field: FieldInfo) -> list[type[BaseModel]]:
    """The groups that a field may hold: one, several to choose from, or none for a single value."""
    inner = () if get_origin(field.annotation) is dict else get_args(field.annotation)
    found = [field.annotation, *inner]
    return [one for one in found if isinstance(one, type) and issubclass(one, BaseModel)]


def describe(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What a value of this type should be: `a whole number of 1 or more`."""
    for item in metadata:
        if isinstance(item, Wanted):
            return item.text
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(inner[0], (*inner[1:], *metadata))
    if origin in (Union, UnionType):
        return f"{describe(next(a for a in inner if a is not NoneType), metadata)}, or null"
    if origin is Literal:
        return "one of " + ", ".join(str(choice).lower() for choice in inner)
    bounds = _bounds(metadata)
    if origin is list:
        count = bounds.get("min_length", 0)
        number = f"{count}" if "max_length" in bounds else f"{count} or more"
        return f"a list of {number}, each {describe(inner[0])}"
    if annotation is bool:
        return "one of true, false"
    if annotation in (int, float):
        return f"{'a whole number' if annotation is int else 'a number'}{_range(bounds)}"
    return "a text"


def _bounds(metadata: tuple[Any, ...]) -> dict[str, Any]:
    """The constraints by name, some of which pydantic holds together in a field."""
    single = []
    for item in metadata:
        single += item.metadata if isinstance(item, FieldInfo) else [item]
    found = ((name, getattr(item, name, None)) for item in single for name in BOUNDS)
    return {name: bound for name, bound in found if bound is not None}


def _range(bounds: dict[str, Any]) -> str:
    if "gt" in bounds:
        return f" over {bounds['gt']}" + (f", up to {bounds['le']}" if "le" in bounds else "")
    if "le" in bounds:
        return f" from {bounds['ge']} to {bounds['le']}"
    return f" of {bounds['ge']} or more" if "ge" in bounds else ""
