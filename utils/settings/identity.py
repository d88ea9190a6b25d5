"""What determines a run's result, and the name that follows from it."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from utils.settings.rules import RULES


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping, `_target_` before its neighbours."""
    for key in sorted(node, key=lambda k: (k != "_target_", str(k))):
        value, name = node[key], f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def determining(settings: dict) -> dict:
    """Dotted key -> value of everything that determines the result.

    Device, paths, logging, tasks and the number of processes are left out (RULES marks them), and
    what is null: a setting that a later version adds does not rename the runs before it.
    """
    return {
        key: value
        for key, value in leaves(settings)
        if value is not None
        and not (key in RULES and RULES[key].free)
        and not key.startswith(("wandb.", "task."))
    }


def digest(settings: dict) -> str:
    """Eight hex digits of what determines the result."""
    text = json.dumps(determining(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(settings: dict) -> str:
    """The name of a run's folder: a function of the settings alone."""
    return f"{settings['name']}-seed{settings['train']['seed']}-{digest(settings)}"


def without_secrets(settings: dict) -> dict:
    """The settings as they may be written down."""
    return {**settings, "wandb": {**settings["wandb"], "api_key": None}}
