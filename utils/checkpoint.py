"""Checkpoints: written whole or not at all, read without running anything in them.

A file of ours holds tensors and plain containers: {format, schema, config, wandb_id, model, ema,
optimizer, scheduler, scaler, progress}. `load_model` also reads the files published for
arXiv 2302.09976.
"""

import json
import math
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from model import LadderVAE
from utils import published
from utils.build import build_model
from utils.config import ConfigError, check_targets, compose, override_settings, recorded, resolve
from utils.files import replace, sha256, verified_write, write_json
from utils.terminal import one_line
from utils.validation import validate
from utils.wandb_client import fetch, is_remote

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
    entry = {"sha256": digest, "bytes": partial.stat().st_size, **facts(state)}
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


def facts(state: dict) -> dict:
    """What a list of checkpoints should say of one, as plain JSON."""
    progress = state["progress"]
    best = progress["best"] if math.isfinite(progress["best"]) else None
    found = {"format": FORMAT, "schema": SCHEMA, "metric": METRIC, "best": best}
    return {**found, "epoch": progress["epoch"], "step": progress["step"]}


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


def locate(source: str | Path, runs_dir: str | Path = "runs") -> Path:
    """The file behind a name: a run's folder stands for its best checkpoint, W&B's are fetched.

    runs_dir: where a run's own folder may have what W&B has, which is then not fetched.

    Raises:
        ValueError: if W&B hasn't got it.
    """
    path = Path(source).expanduser()
    if is_remote(source):
        local = sorted(Path(runs_dir).glob("*/checkpoints/*.pth"))
        return fetch(str(source), cache(), local)
    return path / "checkpoints" / "best.pth" if path.is_dir() else path


def cache() -> Path:
    """Where fetched checkpoints are kept."""
    base = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(base, "dct-ladder-vae", "checkpoints")


def home(source: str | Path, runs_dir: str) -> Path:
    """Where results about a checkpoint go: its run's folder, or one of its own in runs_dir."""
    if is_remote(source):
        return Path(runs_dir, str(source).replace("/", "-").replace(":", "-")).absolute()
    path = locate(source).absolute()
    run = path.parent.parent
    return run if (run / "config.yaml").exists() else Path(runs_dir, path.stem).absolute()


def load_model(
    source: str | Path,
    overrides: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    unsafe: bool = False,
) -> tuple[LadderVAE, DictConfig]:
    """A trained model in eval mode, with the averaged weights where there are any, and its config.

    source: a checkpoint of this project, a run's folder (its best one), a file published for
    arXiv 2302.09976, a W&B run `entity/project/run_id` (its best one, else the last) or artifact
    `entity/project/name:alias`. overrides: as on the command line. A published file carries no
    settings: it needs `["experiment=mnist_dct_ladder", …]`. One of ours needs none;
    `model.is_k=100`, `dataset.root=…` or `dataset=…` change what evaluation uses. Code outside this
    project that its settings name (a `_target_` of your own) is only called where the overrides or
    a file in configs/ name it too. Nothing else in the file is run, read or followed.

    Raises:
        ValueError: one sentence, if the file or the settings don't fit.
    """
    path = locate(source)
    content = read(path, device, unsafe)
    overrides = list(overrides or [])
    if published.is_published(content):
        if not any(item.startswith(("experiment=", "name=")) for item in overrides):
            raise ConfigError(
                f"checkpoint={path} has the published format, which holds no settings: add the "
                "experiment it was trained by, as in experiment=mnist_dct_ladder."
            )
        settings = resolve(compose(overrides))
    elif content.get("format") == FORMAT:
        if content["schema"] > SCHEMA:
            raise ValueError(
                f"checkpoint={path} was written by a newer version of this project (schema "
                f"{content['schema']}, this one reads up to {SCHEMA}): update it."
            )
        settings = override_settings(content.get("config"), overrides, f"checkpoint={source}")
        check_targets(settings, overrides, f"checkpoint={source}")
    else:
        raise ValueError(
            f"checkpoint={path} is neither one of this project's nor a published one: name another."
        )
    validate(settings)
    model = build_model(settings)
    _load(model, content, f"checkpoint={path}", "leave out the overrides of model.…")
    return model.place(device).eval(), OmegaConf.create(settings)


def trained_model(settings: dict, path: Path, device: str | torch.device) -> LadderVAE:
    """In eval mode, the model that these settings of a run under way describe, from its file."""
    model = build_model(settings)
    _load(model, read(path, device), f"checkpoint={path}", "train it again")
    return model.place(device).eval()


def settings_in(path: Path, setting: str) -> dict:
    """The settings in a checkpoint of this project.

    Raises:
        ValueError: if it is another's.
    """
    content = read(path, setting=setting)
    if content.get("format") != FORMAT:
        raise ValueError(f"{setting}: {path} is no checkpoint of this project: name another run.")
    return recorded(content.get("config"), f"{setting}: {path}")


def initialise(model: LadderVAE, path: Path) -> None:
    """Start a model from the weights of a checkpoint of the same architecture: train.init_from.

    Raises:
        ValueError: one sentence, if it is of another one, or cannot be read.
    """
    content = read(path, setting="train.init_from")
    if not published.is_published(content) and content.get("format") != FORMAT:
        raise ValueError(f"train.init_from={path} is no checkpoint of a model: name another.")
    _load(model, content, f"train.init_from={path}", "use the settings it was trained with")


def _load(model: LadderVAE, content: dict, named: str, remedy: str) -> None:
    """The weights of a checkpoint's content into the model."""
    weights = (
        published.convert(content, model)
        if published.is_published(content)
        else trained_weights(content)
    )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[1:2]).strip()
        raise ValueError(
            f"{named} holds another architecture than its settings describe ({first}): {remedy}."
        ) from error


def trained_weights(content: dict) -> dict:
    """The weights that evaluation uses: the average where there is one."""
    if not content["ema"]:
        return content["model"]
    averaged = {k.removeprefix("module."): v for k, v in content["ema"].items()}
    averaged.pop("n_averaged")
    return averaged
