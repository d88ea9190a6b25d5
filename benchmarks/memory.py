"""Training steps of every experiment: their peak memory, resident and on a GPU, and their rate.

Each experiment runs in a process of its own. Where its batch would not fit `LARGEST`, as estimated
without taking any, it is halved until it does; the row says so.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Row, Subject, peak_memory, seconds
from benchmarks.step import make_trainer, train_epoch
from utils.settings import composition
from utils.training.memory import needed, total

WIDE = ("cifar", "svhn")
LARGEST = {"cpu": 2e9, "cuda": None}  # bytes; None: what the device has
FOLDER = Path(__file__).resolve().parent.parent


def fitting(settings: dict, device: torch.device) -> int:
    """Images of a step: the experiment's, halved until they fit."""
    most = LARGEST[device.type] or 0.9 * total(device)
    images = settings["dataset"]["data_module"]["batch_size"]
    while images > 1 and sum(needed(settings, images)) > most:
        images //= 2
    return images


def measured(overrides: list[str], device: torch.device) -> dict[str, float]:
    """GB at the highest of this process, resident and on the GPU; images/s after two steps."""
    subject = Subject.made(overrides, device, 2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(subject, Path(folder))
        took = seconds(lambda: train_epoch(trainer), device, 1)
    found = {"images/s": len(subject.images) / took}
    found["GB resident"] = peak_memory()
    if device.type == "cuda":
        found["GB allocated"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found


def row(experiment: str, device: torch.device, *extra: str) -> Row:
    """One experiment's line."""
    overrides = [f"experiment={experiment}", *extra]
    settings = composition.resolve(composition.compose(overrides[:1]))  # as many images with extras
    batch, images = settings["dataset"]["data_module"]["batch_size"], fitting(settings, device)
    command = [sys.executable, "-m", "benchmarks.memory", "--device", str(device), *overrides]
    command.append(f"dataset.data_module.batch_size={images}")
    told = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    if told.returncode:
        last = told.stderr.strip().splitlines()[-1:] or [f"ended by status {told.returncode}"]
        return Row(f"memory, {experiment}", "not measured", "", last[0])
    found = json.loads(told.stdout)
    value = ", ".join(f"{amount:.2f} {unit}" for unit, amount in found.items())
    note = f"{images} of a batch of {batch} images" if images < batch else f"batch {batch}"
    return Row(f"memory, {experiment}", value, "", ", ".join([note, *extra]))


def rows(device: torch.device) -> list[Row]:
    """Every experiment; the wide ones with train.checkpoint_activations too."""
    made = []
    for name in composition.experiments():
        made.append(row(name, device))
        if name.startswith(WIDE):
            made.append(row(name, device, "train.checkpoint_activations=true"))
    return made


if __name__ == "__main__":  # one experiment, in this process
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="+")
    arguments = parser.parse_args()
    print(json.dumps(measured(arguments.overrides, torch.device(arguments.device))))
