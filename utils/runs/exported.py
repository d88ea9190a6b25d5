"""Exported models: a folder with weights, settings and scores, as task=export writes it.

config.json: {format, schema, weights_sha256, progress, config (the settings)}; model.safetensors:
the weights that evaluation uses, which the digest is of. `hf://org/name@revision` is such a folder
on the Hugging Face Hub, fetched by its own client.
"""

import re
from pathlib import Path

from torch import Tensor

from utils.errors import ConfigError
from utils.files import read_json, sha256, write_json
from utils.runs.checkpoints import FORMAT, SCHEMA
from utils.terminal import one_line
from utils.version import ROOT

WEIGHTS, CONFIG, RESULTS, CARD = "model.safetensors", "config.json", "results.json", "README.md"
MAX_CONFIG = 1_000_000  # bytes
HUB = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
REMEDY = "get a good copy of the folder"


def named(source: str | Path) -> Path:
    """The path of that name; pretrained/NAME is also found in the checkout."""
    path = Path(source).expanduser()
    if path.parts[:1] == ("pretrained",) and not path.exists():
        return ROOT / path
    return path


def is_exported(path: Path) -> bool:
    """Whether it is an exported folder, which may lack a file, or the weights in one."""
    names = (WEIGHTS, CONFIG)
    return path.suffix == ".safetensors" or any((path / name).exists() for name in names)


def is_on_hub(source: str) -> bool:
    """Whether a checkpoint's name is one of the Hugging Face Hub."""
    return source.startswith("hf://")


def write_model(folder: Path, weights: dict[str, Tensor], config: dict, progress: dict) -> None:
    """Write weights and settings; these must hold no secrets."""
    from safetensors.torch import save  # training and measuring do without the package

    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    (folder / WEIGHTS).write_bytes(save(dense, metadata={"format": "pt"}))
    record = {"format": FORMAT, "schema": SCHEMA, "weights_sha256": sha256(folder / WEIGHTS)}
    write_json(folder / CONFIG, {**record, "progress": progress, "config": config})


def read_model(path: Path, setting: str) -> dict:
    """The content of an exported folder, as that of a checkpoint.

    path: the weights' file. setting: the one that named it, for messages.

    Raises:
        ValueError: if a file is missing, damaged, or another than was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    source, config = f"{setting}={path.parent}", path.with_name(CONFIG)
    for file in (path, config):
        if not file.is_file():
            raise ValueError(f"{source} has no {file.name}: {REMEDY}.")
    if config.stat().st_size > MAX_CONFIG:
        raise ValueError(f"{config} is too large for settings: {REMEDY}.")
    record = read_json(config, REMEDY)
    if sha256(path) != record.get("weights_sha256"):
        raise ValueError(f"{source} has other weights than {CONFIG} names: {REMEDY}.")
    try:
        weights = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}): {REMEDY}.") from error
    kept = {key: record.get(key) for key in ("format", "schema", "config", "progress")}
    return {**kept, "model": weights, "ema": None}


def fetch_from_hub(source: str) -> Path:
    """The folder behind hf://org/name@revision, in the client's own cache.

    Raises:
        ConfigError: if there is no such repository, it holds no exported model, or the client is
            not installed.
    """
    name = HUB.fullmatch(source)
    if not name:
        raise ConfigError(f"checkpoint={source} is no name on the Hub: use hf://org/name@revision.")
    try:
        from huggingface_hub import snapshot_download  # of the extra `hub`
    except ImportError as error:
        raise ConfigError(
            f"checkpoint={source} needs the Hub's client: use pip install -e '.[hub]'."
        ) from error
    wanted = [WEIGHTS, CONFIG, "results.*"]
    try:
        folder = snapshot_download(
            name["repository"], revision=name["revision"], allow_patterns=wanted
        )
    except Exception as error:  # the client's own, and those of its transport
        raise ConfigError(
            f"checkpoint={source} could not be fetched ({one_line(error)}): give the name of a "
            "repository that is there, or a folder."
        ) from error
    for file in (WEIGHTS, CONFIG):
        if not Path(folder, file).is_file():
            raise ConfigError(
                f"checkpoint={source} holds no {file}: give a repository that task=export wrote."
            )
    return Path(folder)
