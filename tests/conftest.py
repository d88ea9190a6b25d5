"""What the tests share: small models from the shipped configs, and data that may not be there."""

import dataclasses
import fcntl
import functools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from utils.runs import checkpoints
from utils.settings import composition, identity
from utils.settings.build import build_model
from utils.settings.composition import composed_settings
from utils.settings.schema import Settings

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LADDER_VAE_SHARED", ROOT.parent / "shared"))
LONGEST = (
    "test_run_experiment",
    "test_tasks",
    "test_failures",
    "test_several",
    "test_wandb_client",
    "test_wandb_history",
    "test_launchers",
    "test_own_images",
    "test_torch_dataset",
    "test_extending",
    "test_resume",
    "test_trainer",
    "test_repository",
)
TINY_UNET = "model.decoder.z_L_prior.model"

# Small models gain nothing from a second thread, workers share the cores, their processes too; and
# where two computations agree to the last bit, they do so with one thread.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, or one worker would end long after the other."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@functools.cache  # a tenth of a second each
def compose(experiment: str, *overrides: str) -> Settings:
    """A shipped experiment's settings with overrides, checked."""
    return composed_settings(composition.compose([f"experiment={experiment}", *overrides]))


def shrunk(experiment: str) -> list[str]:
    """Overrides that make an experiment small enough to try; its structure stays."""
    overrides = ["dataset.data_module.batch_size=4", "dataset.data_module.test_batch_size=4"]
    overrides += ["model.num_ch=16", "model.is_k=2", "model.is_k_paths=1", "train.use_amp=false"]
    if "cifar" in experiment or "svhn" in experiment:
        overrides += ["model.num_mix=2"]
    if "dct" in experiment:
        overrides += [f"{TINY_UNET}.model_channels=16", f"{TINY_UNET}.num_res_blocks=1"]
        overrides += ["model.decoder.z_L_prior.T=4"]
    return overrides


def randomised(model: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """Move every parameter off its start, where half the network is the identity or zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def shared_data() -> Path:
    """The folder of real images."""
    path = SHARED / "data"
    if not path.is_dir():
        pytest.skip(f"no real images in {path} (set LADDER_VAE_SHARED)")
    return path


@pytest.fixture(scope="session")
def references() -> Path:
    """The folder of published-format checkpoints and what they must give."""
    path = SHARED / "reference"
    if not path.is_dir():
        pytest.skip(f"no reference checkpoints in {path} (set LADDER_VAE_SHARED)")
    return path


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of pytest's workers to ask fills, for all."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(folder, output) of one small training run by the command, with W&B as it is by default."""
    from tests.commands import SMALL, call

    def make(folder: Path) -> None:
        arguments = ["experiment=digits_dct_ladder", *SMALL]
        found = call(folder, *arguments, launcher=("env",))  # from its first import on
        folder.with_suffix(".json").write_text(json.dumps([found.stdout, found.stderr]))

    folder = made_once(tmp_path_factory, "trained", make)
    output, errors = json.loads(folder.with_suffix(".json").read_text())
    return folder, subprocess.CompletedProcess([], 0, output, errors)


@pytest.fixture
def saved(tmp_path):
    """(path, model) of a saved small model with averaged weights beside the trained ones."""
    from utils.training.progress import Progress

    experiment = "digits_dct_ladder"
    settings = compose(experiment, *shrunk(experiment), "wandb.api_key=planted-key")
    torch.manual_seed(1)
    model = build_model(settings)
    averaged = {f"module.{k}": v + 1 for k, v in model.state_dict().items()}
    state = {"model": model.state_dict(), "ema": {"n_averaged": torch.tensor(2), **averaged}}
    state["progress"] = dataclasses.asdict(Progress(epoch=2, step=20, best=1.5))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    path = tmp_path / "run" / "checkpoints" / "best.pth"
    return checkpoints.save(path, identity.without_secrets(settings), state), model
