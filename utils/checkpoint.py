"""Trained models by name: a run's folder, a file, a published file, a W&B run or artifact.

`load_model` reads checkpoints of this project and those published for arXiv 2302.09976, and runs
nothing that is in them.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from model import LadderVAE
from utils.errors import ConfigError
from utils.files import file_digest
from utils.runs import exported, published
from utils.runs.checkpoints import download_cache, is_own, read
from utils.runs.tensors import check_weights, named_tensors
from utils.settings.build import build_model, build_without_numbers
from utils.settings.composition import compose, composed_settings
from utils.settings.recorded import recorded_settings
from utils.settings.schema import Settings
from utils.settings.trust import targets_named_in
from utils.tracking.wandb_fetch import fetch, is_remote


def load_model(
    source: str | Path,
    overrides: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    unsafe: bool = False,
    trainable: bool = False,
) -> tuple[LadderVAE, DictConfig]:
    """A trained model in eval mode, with the averaged weights where there are any, and its config.

    source: a checkpoint of this project, a run's folder (its best one), an exported folder or
    `hf://org/name@revision`, a file published for arXiv 2302.09976, a W&B run
    `entity/project/run_id` (its best one, else the last) or artifact `entity/project/name:alias`.
    overrides: as on the command line. A published file carries no settings: it needs
    `["experiment=mnist_dct_ladder", …]`. One of ours needs none;
    `model.is_k=100`, `dataset.root=…` or `dataset=…` change what evaluation uses. Code outside this
    project that its settings name (a `_target_` of your own) is only called where the overrides or
    a file in configs/ name it too. Nothing else in the file is run, read or followed. trainable:
    whether gradients of the parameters are tracked; `model.train()` too then trains it.

    Raises:
        ValueError: one sentence, if the file or the settings don't fit.
    """
    overrides = list(overrides or [])
    trusted = targets_named_in(overrides)
    model, settings = load(locate(source), overrides, device, trusted, unsafe=unsafe)
    return model.requires_grad_(trainable), OmegaConf.create(settings.plain)


def load(
    path: Path,
    overrides: Sequence[str],
    device: str | torch.device,
    trusted: Collection[str],
    replaced: Mapping[str, object] = MappingProxyType({}),
    unsafe: bool = False,
) -> tuple[LadderVAE, Settings]:
    """`load_model` of a file; its settings typed.

    trusted: the targets of one's own that its settings may name. replaced: groups of settings that
    the command brings itself, see `recorded_settings`.

    Raises:
        ValueError: as `load_model`.
    """
    return load_content(
        content(path, "checkpoint", unsafe), path, overrides, device, trusted, replaced
    )


def load_content(
    loaded: dict,
    path: Path,
    overrides: Sequence[str],
    device: str | torch.device,
    trusted: Collection[str],
    replaced: Mapping[str, object],
) -> tuple[LadderVAE, Settings]:
    """`load` of a file that has been read: its content."""
    source = f"checkpoint={path}"
    if published.is_published(loaded):
        if not any(item.startswith(("experiment=", "name=")) for item in overrides):
            raise ConfigError(
                f"{source} has the published format, which holds no settings: add the experiment "
                "it was trained by, as in experiment=mnist_dct_ladder."
            )
        settings = composed_settings(compose(list(overrides)))
    elif is_own(loaded, source):
        recorded = loaded.get("config")
        settings = recorded_settings(recorded, overrides, source, trusted, replaced)
    else:
        raise ValueError(
            f"{source} is neither one of this project's nor a published one: name another."
        )
    remedy = "leave out the overrides of model.…"
    weights = _weights_for(build_without_numbers(settings), loaded, source, remedy)
    model = build_model(settings)
    model.load_state_dict(weights)
    return model.to_device(device).eval(), settings


def trained_model(settings: Settings, path: Path, device: str | torch.device) -> LadderVAE:
    """In eval mode, the model that these settings of a run under way describe, from its file."""
    model, source = build_model(settings), f"checkpoint={path}"
    model.load_state_dict(_weights_for(model, read(path), source, "train it again"))
    return model.to_device(device).eval()


def initialise(model: LadderVAE, path: Path) -> None:
    """Start a model from the weights of a checkpoint of the same architecture: train.init_from.

    Raises:
        ValueError: one sentence, if it is of another one, or cannot be read.
    """
    loaded, source = content(path, "train.init_from"), f"train.init_from={path}"
    if not published.is_published(loaded) and not is_own(loaded, source):
        raise ValueError(f"{source} is no checkpoint of a model: name another.")
    remedy = "use the settings it was trained with"
    model.load_state_dict(_weights_for(model, loaded, source, remedy))


def locate(source: str | Path, runs_dir: str | Path = "runs") -> Path:
    """The file behind a name: a run's folder stands for its best checkpoint, W&B's are fetched.

    runs_dir: where a run's own folder may have what W&B has, which is then not fetched.

    Raises:
        ValueError: if W&B hasn't got it.
    """
    if exported.is_on_hub(str(source)):
        return exported.fetch_from_hub(str(source)) / exported.WEIGHTS
    path = exported.named(source)
    if exported.is_exported(path):
        return path / exported.WEIGHTS if path.is_dir() else path
    if is_remote(source):
        local = sorted(Path(runs_dir).glob("*/checkpoints/*.pth"))
        return fetch(str(source), download_cache(), local)
    return path / "checkpoints" / "best.pth" if path.is_dir() else path


def output_folder(source: str | Path, runs_dir: str) -> Path:
    """Where results about a checkpoint go: its run's folder, or one of its own in runs_dir."""
    if is_remote(source) or exported.is_on_hub(str(source)):
        name = str(source).removeprefix("hf://").replace("@", "-")
        return Path(runs_dir, name.replace("/", "-").replace(":", "-")).absolute()
    path = exported.named(source)
    if exported.is_exported(path):
        folder = path if path.is_dir() else path.parent
        return Path(runs_dir, folder.resolve().name).absolute()
    path = locate(source).absolute()
    run = path.parent.parent
    if any((run / name).exists() for name in ("config.yaml", "run.json")):
        return run.resolve() if run.is_symlink() else run
    return Path(runs_dir, path.stem).absolute()


def content(path: Path, setting: str = "checkpoint", unsafe: bool = False) -> dict:
    """What is in a checkpoint or an exported model."""
    if exported.is_exported(path):
        return exported.read_model(path, setting)
    return read(path, unsafe, setting)


def content_and_digest(path: Path) -> tuple[dict, str]:
    """What is in a file, and its SHA-256: a run under way may replace it while it is read."""
    digest = file_digest(path) if path.is_file() else ""  # `content` says what is missing
    while True:
        found, before = content(path), digest
        if (digest := file_digest(path)) == before:
            return found, digest


def _weights_for(model: LadderVAE, content: dict, source: str, remedy: str) -> dict[str, Tensor]:
    """A checkpoint's weights, which are those that evaluation uses and fit the model.

    Raises:
        ValueError: one sentence, if there are none, or they don't fit (it says the remedy).
    """
    if published.is_published(content):
        weights = published.convert(content, model, source)
    else:
        weights = evaluated_weights(content, source)
    check_weights(weights, model.state_dict(), source, remedy)
    return weights


def evaluated_weights(content: dict, source: str) -> dict[str, Tensor]:
    """The weights that evaluation uses: the average where there is one.

    Raises:
        ValueError: if they are missing.
    """
    if content.get("ema") is None:
        return named_tensors(content, "model", source)
    weights = named_tensors(content, "ema", source)
    averaged = {name.removeprefix("module."): value for name, value in weights.items()}
    averaged.pop("n_averaged", None)
    return averaged
