"""Checkpoint files: written whole or not at all, read without running anything in them.

A file of ours holds tensors and plain containers: {format, schema, config, wandb_id, model, ema,
optimizer, scheduler, scaler, progress}.
"""

import json
import math
import os
import pickle
from pathlib import Path

import torch

from utils.files import replace, sha256, verified_write, write_json
from utils.settings.trust import recorded
from utils.terminal import one_line

FORMAT, SCHEMA = "dct-ladder-vae", 1
MANIFEST, RECORDED = "manifest.json", 3  # of each name: the new one, the old, and one more
METRIC = "val/loss"  # bits/dim: its lowest makes the best checkpoint


def save(path: Path, config: dict, state: dict) -> Path:
    """Write a checkpoint of a run with this config (which must hold no secrets).

    The old one goes when the new one has been read back: until then under its own name, after that
    as `<stem>.previous.pth`. manifest.json beside them names the SHA-256 of each.
    """
    content = {"format": FORMAT, "schema": SCHEMA, "config": config, **state}
    partial = path.with_name(f"{path.name}.partial")
    digest = verified_write(partial, lambda file: torch.save(content, file))
    manifest = recorded_digests(path.parent)
    if path.exists() and path.stem not in manifest:  # fetched, or of an earlier version
        manifest[path.stem] = [{"sha256": sha256(path), "bytes": path.stat().st_size}]
    entry = {"sha256": digest, "bytes": partial.stat().st_size, **metadata(state)}
    manifest[path.stem] = [entry, *manifest.get(path.stem, [])][:RECORDED]
    write_json(path.with_name(MANIFEST), manifest)  # before the names change: see `is_whole`
    if path.exists():
        _keep(path)
    replace(partial, path)
    return path


def _keep(path: Path) -> None:
    """Also under the name of the one before."""
    link = path.with_name(f"{path.stem}.previous.partial")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        os.replace(link, previous(path))
    except OSError:  # a disk without hard links: for a moment it has the other name alone
        os.replace(path, previous(path))


def previous(path: Path) -> Path:
    """Where the checkpoint before this one is."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def recorded_digests(folder: Path) -> dict[str, list[dict]]:
    """By stem, what is recorded of the checkpoints in a run's folder, the newest first."""
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:  # damaged itself: the next save writes a new one
        return {}


def is_whole(path: Path) -> bool:
    """Whether a file is what its folder's manifest says; where that says nothing, it may be."""
    entries = recorded_digests(path.parent).get(path.name.partition(".")[0])
    return not entries or sha256(path) in {entry["sha256"] for entry in entries}


def newest(path: Path) -> tuple[dict, str | None] | None:
    """The checkpoint to go on from: this one or, if it is damaged, the one before it.

    Returns its content, and a sentence if it is the one before; None where neither is there.

    Raises:
        ValueError: if none that is there is good.
    """
    there = [candidate for candidate in (path, previous(path)) if candidate.exists()]
    trouble = None
    for candidate in there:
        try:
            return read(candidate), trouble and f"{trouble} Going on from {candidate.name} instead."
        except ValueError as error:
            trouble = trouble or str(error)
    if there:
        raise ValueError(trouble)
    return None


def metadata(state: dict) -> dict:
    """Metadata of a checkpoint for the manifest and for W&B, as plain JSON."""
    progress = state["progress"]
    best = progress["best"] if math.isfinite(progress["best"]) else None
    fixed = {"format": FORMAT, "schema": SCHEMA, "metric": METRIC, "best": best}
    return {**fixed, "epoch": progress["epoch"], "step": progress["step"]}


def read(
    path: Path,
    device: str | torch.device = "cpu",
    unsafe: bool = False,
    setting: str = "checkpoint",
) -> dict:
    """Load a file of weights; `unsafe` also runs what a pickle asks for: only for files you trust.

    setting: what named the file, for the messages.

    Raises:
        ValueError: if it is missing, damaged, or holds more than tensors and plain containers.
    """
    if not path.is_file():
        raise ValueError(f"{setting}={path} is not a file: name a .pth file or a run's folder.")
    if not is_whole(path):
        raise ValueError(
            f"{setting}={path} is damaged (it is none that {MANIFEST} beside it names): get a good "
            "copy."
        )
    try:
        content = torch.load(path, map_location=device, weights_only=not unsafe)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{setting}={path} is damaged or holds more than tensors and plain containers: it was "
            "not loaded; get a good copy, or use load_model(…, unsafe=True) if you trust it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ValueError(
            f"{setting}={path} is damaged ({one_line(error)}): get a good copy."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{setting}={path} holds no weights: name another file.")
    return content


def settings_in(path: Path, setting: str) -> dict:
    """The settings in a checkpoint of this project.

    Raises:
        ValueError: if it is another's.
    """
    content = read(path, setting=setting)
    if content.get("format") != FORMAT:
        raise ValueError(f"{setting}: {path} is no checkpoint of this project: name another run.")
    return recorded(content.get("config"), f"{setting}: {path}")
