"""From a `_target_` with its arguments to the object that it describes."""

from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any

from model.part import Part
from utils.errors import ConfigError

CALLS = ("_target_", "_partial_")  # say what is called, and how; their neighbours are arguments


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
    arguments = {k: _built(v, f"{key}.{k}") for k, v in arguments_of(node).items()}
    make = partial(_call, _named(node, key), target_of(node, key), **arguments)
    return make if node.get("_partial_") else make()


def arguments_of(node: dict) -> dict:
    """What a `_target_` is called with, as the settings have it."""
    return {name: value for name, value in node.items() if name not in CALLS}


def part_class(node: dict, key: str) -> type[Part] | None:
    """The part of a model that a `_target_` names, which can be asked about its arguments.

    None for a function, or a class of somebody's own that is no `Part`.
    """
    target = target_of(node, key)
    return target if isinstance(target, type) and issubclass(target, Part) else None


def target_of(node: dict, key: str) -> Callable:
    """The class or function that the `_target_` of settings[key] names.

    Raises:
        ConfigError: if there is none.
    """
    try:
        return resolve_name(str(node.get("_target_")))
    except (ImportError, AttributeError, ValueError) as error:
        raise _failed(_named(node, key), error) from error


def _named(node: dict, key: str) -> str:
    return f"{key}._target_={node.get('_target_')}"


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
