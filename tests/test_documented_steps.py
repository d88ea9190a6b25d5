"""Every documented command that can be run on one machine without a network, for one step."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import call_each
from tests.conftest import shrunk
from tests.documented import EXPERIMENT, PAGES, commands, overrides
from utils.settings import composition
from utils.settings.schema.task import TASKS

ELSEWHERE = {  # what is in a command that is not run here -> why
    "--config-dir": "tests/test_extending.py runs them whole",
    "hydra/launcher=": "needs SLURM",
    "train.resume_id=": "needs a run at W&B; tests/runs/test_longer.py, tests/tracking",
    "checkpoint=me/": "needs W&B; tests/tracking/test_wandb_client.py",
    "task=sync": "needs W&B; tests/tracking/test_wandb_faults.py",
    "checkpoint=hf://": "needs the Hub; tests/tasks/test_export.py",
    "checkpoint=mnist.pth": "a published file; tests/runs/test_published.py",
    "task=matrix": "tests/tasks/test_matrix.py",
    "checkpoint=pretrained/": "tests/test_documentation.py, by the tour",
}
SOON = ["train.max_epochs=1", "train.threads=1", "model.is_k=2", "wandb.setup.mode=disabled"]
LITTLE = {"num_images": 4, "estimators": "[iwae]", "mi_images": 2, "probe_images": 0, "pairs": 1}
LITTLE |= {"report": "false"}
MORE = ("mnist_ladder", "cifar_ladder", "svhn_ladder")  # whose runs the tasks name
NAMES = {  # as a page has it -> what is there
    "/path/to/images": "photos",
    "runs/FASHION_LADDER": "runs/fashion_ladder-*",
    "runs/MNIST_LADDER": "runs/mnist_ladder-*",
    "runs/CIFAR_LADDER": "runs/cifar_ladder-*",
    "runs/SVHN_LADDER": "runs/svhn_ladder-*",
    "runs/OTHER": "runs/mnist_ladder-*",
}
THEIRS = """
import torch

class Class(torch.utils.data.Dataset):
    def __init__(self, path):
        assert path == "/some/where"

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return torch.full((3, 32, 32), index, dtype=torch.uint8), 0
"""
STAND_INS = "from tests.stand_ins import take_their_place\ntake_their_place()\n"


def write_images(folder: Path) -> None:
    """What the pages call photos, faces.npy and their.module."""
    for split, count in {"train": 8, "validation": 4, "test": 4}.items():
        (folder / "photos" / split).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 36), (number, 9, 90)).save(
                folder / "photos" / split / f"{number}.png"
            )
    np.save(folder / "faces.npy", np.zeros((60, 64, 64, 3), np.uint8))
    (folder / "their").mkdir()
    (folder / "their" / "module.py").write_text(THEIRS)


def small(job: list[str]) -> list[str]:
    """The job with what makes it quick."""
    job = [override for override in job if override != "train.ddp=true"]  # of a launcher
    task = composition.compose(job).task.name
    keys = TASKS[task].model_fields
    ends = [f"task.{key}={value}" for key, value in LITTLE.items() if key in keys]
    if task not in ("train", "check_data"):
        return [*job, *ends, *(["model.is_k=2"] if "estimators" in keys else [])]
    experiment = next((o.partition("=")[2] for o in job if o.startswith("experiment=")), "")
    shrunken = [o for o in shrunk(experiment) if "batch_size" not in o]
    size = 1300 if "digits" in experiment else 8  # one step
    return [*job, *SOON, *shrunken, f"dataset.data_module.batch_size={size}", *ends]


def named(job: list[str], folder: Path) -> list[str]:
    """The job about what is in the folder; of several runs, the first that was trained."""
    run = "cifar_dct_ladder" if "dataset=image_folder" in job else "mnist_dct_ladder"
    text = "\n".join(job)
    for name, pattern in {**NAMES, "runs/RUN": f"runs/{run}-*"}.items():
        found = sorted(folder.glob(pattern), key=began)
        text = text.replace(name, str(found[0].relative_to(folder)) if found else name)
    return text.split("\n")


def began(path: Path) -> float:
    """When a run was first written to; 0 for other folders."""
    record = path / "run.json"
    return record.stat().st_mtime if record.exists() else 0.0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_documented_command_takes_a_step(tmp_path):
    lines = [c for page in PAGES for c in commands(page) if EXPERIMENT in shlex.split(c)]
    for reason in ELSEWHERE:
        assert any(reason in line for line in lines), reason
    lines = [line for line in lines if not any(reason in line for reason in ELSEWHERE)]
    jobs = list(dict.fromkeys(tuple(job) for line in lines for job in overrides(line)))
    own = [job for job in jobs if not any(o.startswith(("task=", "train.init_from")) for o in job)]
    write_images(tmp_path)
    trained = [*own, *((f"experiment={name}",) for name in MORE)]
    run_all(tmp_path, [list(job) for job in trained])
    *_, other = sorted(tmp_path.glob("runs/mnist_dct_ladder-*"), key=began)  # not what RUN is
    (tmp_path / "some").mkdir()
    shutil.copy(other / "checkpoints" / "last.pth", tmp_path / "some" / "last.pth")
    rest = [list(job) for job in jobs if job not in own]
    assert len(own) >= 10 and len(rest) >= 20
    run_all(tmp_path, rest)


def run_all(folder: Path, jobs: list[list[str]]) -> None:
    """Each ends well."""
    cases = [small(named(job, folder)) for job in jobs]
    found = call_each(folder, cases, STAND_INS, timeout=700)
    failed = [(case, told) for case, (status, *told) in zip(cases, found, strict=True) if status]
    assert failed == []
