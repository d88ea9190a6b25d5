"""Runs as their folders tell of them: by pattern, by W&B id, with their settings."""

import glob
import os
from contextlib import suppress
from pathlib import Path

import yaml

from utils.errors import ConfigError
from utils.files import read_json, read_text
from utils.runs import checkpoints
from utils.settings.identity import determining
from utils.settings.trust import plain_data
from utils.terminal import one_line


def expand_pattern(name: str) -> list[str]:
    """The paths that match a glob pattern; what is there under its name stands for itself."""
    path = os.path.expanduser(name)
    return sorted(glob.glob(path)) if glob.has_magic(name) and not os.path.exists(path) else [name]


def read_run(folder: Path) -> tuple[Path, dict, str]:
    """A run's folder (absolute), its settings and its W&B id.

    Raises:
        ConfigError: if it is not the folder of a run.
    """
    wandb_id = _wandb_id_of(folder)
    if wandb_id is None:
        raise ConfigError(f"run={folder} is not the folder of a run: name one in runs_dir.")
    return folder.absolute(), _settings_in(folder), wandb_id


def find_run(runs_dir: str, wandb_id: str) -> tuple[dict | None, list[Path]]:
    """The settings of the run in runs_dir that has this W&B id, and its folders: it, and copies.

    None where none has.

    Raises:
        ConfigError: if runs of different settings have it.
    """
    found = {folder: _settings_in(folder) for folder in folders_with(Path(runs_dir), wandb_id)}
    first, *others = found or [None]
    for other in others:  # a copy has the same settings
        if determining(found[first]) != determining(found[other]):
            raise ConfigError(
                f"train.resume_id={wandb_id} is the id of two runs, {first} and {other}: continue "
                "the one that you mean by its own command."
            )
    return found.get(first), list(found)


def folders_with(runs_dir: Path, wandb_id: str) -> list[Path]:
    """The folders of runs that have this W&B id."""
    folders = sorted(path.parent for path in runs_dir.glob("*/run.json"))
    return [folder for folder in folders if _wandb_id_of(folder) == wandb_id]


def _wandb_id_of(folder: Path) -> str | None:
    """A run's W&B id; where run.json is lost or damaged, its checkpoint's; None if neither is."""
    found = wandb_id_in(folder)
    if found is None:
        with suppress(ValueError):
            found = checkpoints.newest(folder / "checkpoints" / "last.pth")[0].get("wandb_id")
    return found if isinstance(found, str) else None


def wandb_id_in(folder: Path) -> str | None:
    """The W&B id in a run's folder; None where run.json is missing or damaged."""
    try:
        found = read_json(folder / "run.json", "").get("wandb_id")
    except (OSError, ConfigError):
        return None
    return found if isinstance(found, str) else None


def _settings_in(folder: Path) -> dict:
    """The settings in config.yaml of a run's folder.

    Raises:
        ConfigError: if it is missing, damaged, or holds more than settings.
    """
    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(read_text(path))
    except Exception as error:  # what a damaged file makes the reader raise may be anything
        raise ConfigError(
            f"{path} is missing or damaged ({one_line(error)}): repeat the run's own command, "
            "which writes it anew."
        ) from error
    return plain_data(content, str(path))
