"""Checkpoint files: written completely or not at all, read without executing anything in them.

A file of this project holds tensors and plain containers: {format, schema, config, wandb_id,
model, ema, optimizer, scheduler, scaler, progress}.
"""

import copy
import json
import math
import os
import pickle
from pathlib import Path

import torch

from utils.files import partial_path, read_text, replace, sha256, verified_write, write_json
from utils.runs.tensors import check_finite, check_separate, load_tensors, tensors_in
from utils.settings.kinds import is_number_of_threads, is_path_component
from utils.settings.trust import plain_data
from utils.terminal import one_line, shown

FORMAT, SCHEMA = "dct-ladder-vae", 1
MANIFEST = "manifest.json"
MANIFEST_DEPTH = 3  # entries per name: the new file, its predecessor, and one more
METRIC = "val/loss"  # bits/dim: its lowest makes the best checkpoint
CONSTANTS = {  # that a run goes on with, where a checkpoint has them
    "wandb_id": (str, is_path_component),
    "images": (str, str.isprintable),
    "threads": (int, is_number_of_threads),
}


def save(path: Path, config: dict, state: dict) -> Path:
    """Write a checkpoint of a run with this config (which must hold no secrets).

    The old file keeps its name until the new one has been read back, and is then kept as
    `<stem>.previous.pth`. manifest.json beside them lists the SHA-256 of each.
    """
    content = {"format": FORMAT, "schema": SCHEMA, "config": config, **state}
    partial = partial_path(path)
    digest = verified_write(partial, lambda file: torch.save(content, file))
    entry = {"sha256": digest, "bytes": partial.stat().st_size, **metadata(state)}
    try:
        _list_in_manifest(path, entry)
        if path.exists():
            _keep_previous(path)
        replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _list_in_manifest(path: Path, entry: dict) -> None:
    """List a new file of a checkpoint, before it gets its name: see `is_intact`."""
    manifest = read_manifest(path.parent)
    if path.exists() and path.stem not in manifest:  # fetched, or written by an earlier version
        manifest[path.stem] = [{"sha256": sha256(path), "bytes": path.stat().st_size}]
    manifest[path.stem] = [entry, *manifest.get(path.stem, [])][:MANIFEST_DEPTH]
    write_json(path.with_name(MANIFEST), manifest)


def _keep_previous(path: Path) -> None:
    """Give the current file its second name, `<stem>.previous.pth`."""
    link = path.with_name(f"{path.stem}.previous.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        os.replace(link, previous(path))
    except OSError:  # no hard links here: for a moment it has the second name only
        os.replace(path, previous(path))


def previous(path: Path) -> Path:
    """The path of a checkpoint's predecessor."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def read_manifest(folder: Path) -> dict[str, list[dict]]:
    """By stem, the entries about the checkpoints in a run's folder, the newest first.

    What is damaged in it is left out: the next save writes a new one.
    """
    try:
        content = json.loads(read_text(folder / MANIFEST))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    stems = content.items() if isinstance(content, dict) else ()
    return {stem: _entries(listed) for stem, listed in stems}


def _entries(listed: object) -> list[dict]:
    """Those that have a digest."""
    listed = listed if isinstance(listed, list) else []
    return [e for e in listed if isinstance(e, dict) and isinstance(e.get("sha256"), str)]


def is_intact(path: Path) -> bool:
    """Whether a file has a digest that its folder's manifest lists; True where it lists none."""
    entries = read_manifest(path.parent).get(path.name.partition(".")[0])
    return not entries or sha256(path) in {entry["sha256"] for entry in entries}


def newest(path: Path) -> tuple[dict, str | None]:
    """The checkpoint to resume from: this one or, if it is damaged, its predecessor.

    Returns its content, and a sentence if it is the one before; an empty content where neither is
    there.

    Raises:
        ValueError: if every file that exists is damaged.
    """
    existing = [candidate for candidate in (path, previous(path)) if candidate.exists()]
    trouble = None
    for candidate in existing:
        try:
            content = read(candidate)
            _check_resumable(content, f"checkpoint={candidate}")
        except ValueError as error:
            trouble = trouble or str(error)
            continue
        own = copy.deepcopy(content)  # it was the file's own pages, which training may replace
        return own, trouble and f"{trouble} Going on from {candidate.name} instead."
    if existing:
        raise ValueError(trouble)
    return {}, None


def _check_resumable(content: dict, source: str) -> None:
    """Whether a run may go on from it, as far as this can be told without the run.

    Raises:
        ValueError: if not.
    """
    if not is_own(content, source):
        raise ValueError(f"{source} is no checkpoint of this project: get a good copy.")
    config = content.get("config")
    if not (isinstance(config, dict) and isinstance(config.get("train", {}), dict)):
        raise ValueError(f"{source} is damaged (it holds no settings): get a good copy.")
    for name, (kind, accepts) in CONSTANTS.items():
        value = content.get(name)
        if value is not None and not (type(value) is kind and accepts(value)):
            raise ValueError(
                f"{source} is damaged (its {name} is {shown(value)}): get a good copy."
            )
    check_separate(tensors_in(content), source)
    check_finite(tensors_in({name: content.get(name) for name in ("model", "ema")}), source)


def metadata(state: dict) -> dict:
    """Metadata of a checkpoint for the manifest and for W&B, as plain JSON."""
    progress = state["progress"]
    best = progress["best"] if math.isfinite(progress["best"]) else None
    fixed = {"format": FORMAT, "schema": SCHEMA, "metric": METRIC, "best": best}
    return {**fixed, "epoch": progress["epoch"], "step": progress["step"]}


def read(path: Path, unsafe: bool = False, setting: str = "checkpoint") -> dict:
    """Load a checkpoint on the CPU; its tensors may be the file's own pages.

    unsafe: also execute what a pickle asks for; only for files you trust. setting: the setting that
    named the file, for messages.

    Raises:
        ValueError: if it is missing, damaged, or holds more than tensors and plain containers.
    """
    if not path.is_file():
        raise ValueError(f"{setting}={path} is not a file: name a .pth file or a run's folder.")
    try:
        if not is_intact(path):
            raise ValueError(f"it is none that {MANIFEST} beside it names")
        unsafely = {"map_location": "cpu", "weights_only": False}
        content = torch.load(path, **unsafely) if unsafe else load_tensors(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{setting}={path} is damaged or holds more than tensors and plain containers: it was "
            "not loaded; get a good copy, or use load_model(…, unsafe=True) if you trust it."
        ) from error
    except Exception as error:  # a damaged file can make a reader raise anything
        raise ValueError(
            f"{setting}={path} is damaged ({one_line(error)}): get a good copy."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{setting}={path} holds no weights: name another file.")
    return content


def is_own(content: dict, source: str) -> bool:
    """Whether a loaded file has this project's layout.

    Raises:
        ValueError: if it has, and this version cannot read it.
    """
    if content.get("format") != FORMAT:
        return False
    schema = content.get("schema")
    if type(schema) is not int or schema < 1:
        raise ValueError(f"{source} is damaged (its schema is {shown(schema)}): get a good copy.")
    if schema > SCHEMA:
        raise ValueError(
            f"{source} was written by a newer version of this project (schema {schema}, this one "
            f"reads up to {SCHEMA}): update it."
        )
    _check_progress(content.get("progress"), source)
    return True


def _check_progress(progress: object, source: str) -> None:
    """Where a file says how long it was trained, it says so in numbers.

    Raises:
        ValueError: if not.
    """
    if progress is None:
        return
    kinds = {"epoch": int, "step": int, "best": float}
    if not isinstance(progress, dict) or any(
        type(progress[name]) not in (kind, int) for name, kind in kinds.items() if name in progress
    ):
        raise ValueError(
            f"{source} is damaged (its progress is {shown(progress)}): get a good copy."
        )


def download_cache() -> Path:
    """Where fetched checkpoints are kept."""
    base = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(base, "dct-ladder-vae", "checkpoints")


def settings_in(path: Path, setting: str) -> dict:
    """The settings in a checkpoint of this project.

    Raises:
        ValueError: if it is not one of this project's.
    """
    content = read(path, setting=setting)
    if not is_own(content, f"{setting}: {path}"):
        raise ValueError(f"{setting}: {path} is no checkpoint of this project: name another run.")
    return plain_data(content.get("config"), f"{setting}: {path}")
