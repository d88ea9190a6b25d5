"""What determines a run's result, and the name that follows from it."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from utils.settings.schema import KEYS, Settings

ELSEWHERE = (
    "wandb",
    "task",
    "ood",
    "estimators",
    "metrics",
    "trackers",
)  # groups that change no result
# What may differ between the processes of a run: places, and how a machine computes.
OF_A_MACHINE = (
    "checkpoint",
    "dataset.cache",
    "dataset.download",
    "dataset.memory_limit",
    "dataset.root",
    "ood.root",
    "run",
    "runs_dir",
    "task.output",
    "train.device",
    "train.fid_weights",
    "train.grace_seconds",
    "train.stuck_minutes",
    "train.threads",
)

# Settings that are no more, with the defaults under which earlier versions named their folders.
FORMER = {"model.is_k_prior": 16}

# Settings of later versions, with the values that change nothing: these rename no earlier run.
NEUTRAL = {
    "model.beta_cycles": 1,
    "model.kl_balance": False,
    "model.decoder.posterior": "absolute",
    "model.decoder.output": "state",
    "model.decoder.tied": False,
}


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping."""
    for key in sorted(node):
        value, name = node[key], f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def determining(plain: dict) -> dict[str, Any]:
    """Dotted key -> value of everything in plain settings that determines the result.

    Device, paths, logging, tasks and the number of processes are left out (the schema marks them
    as free), and what is null or neutral: a setting that a later version adds does not rename
    earlier runs.
    """
    return {
        key: value
        for key, value in leaves(plain)
        if value is not None
        and NEUTRAL.get(key, ...) != value
        and not (key in KEYS and KEYS[key].free)
        and key.partition(".")[0] not in ELSEWHERE
    }


def of_all_processes(plain: dict) -> dict[str, Any]:
    """Dotted key -> value of everything in plain settings that a run's processes must share."""
    return {
        key: value
        for key, value in leaves(plain)
        if key not in OF_A_MACHINE and key.partition(".")[0] not in ("wandb", "trackers")
    }


def digest(plain: dict) -> str:
    """Eight hex digits of what determines the result."""
    text = json.dumps({**FORMER, **determining(plain)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(settings: Settings) -> str:
    """The name of a run's folder: a function of the settings alone."""
    return f"{settings.name}-seed{settings.train.seed}-{digest(settings.plain)}"


def without_secrets(settings: Settings) -> dict:
    """The settings as they may be written down: plain containers."""
    plain = settings.plain
    return {**plain, "wandb": {**plain["wandb"], "api_key": None}}
