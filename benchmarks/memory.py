"""Peak memory of training, resident and on a GPU, and its rate, for every experiment.

Each experiment runs in a process of its own. A batch that is estimated not to fit into `LIMITS` is
halved until it does, which the row says.
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
from utils.settings.schema import Settings
from utils.training.memory import estimate_memory, total_memory

WIDE = ("cifar", "svhn")
LIMITS = {"cpu": 2e9, "cuda": None}  # bytes; None: nine tenths of the device's
FOLDER = Path(__file__).resolve().parent.parent


def fitting_batch(settings: Settings, device: torch.device) -> int:
    """Images of a step: the experiment's, halved until they fit."""
    limit = LIMITS[device.type] or 0.9 * total_memory(device)
    images = settings.dataset.data_module.batch_size
    while images > 1 and sum(estimate_memory(settings, images)) > limit:
        images //= 2
    return images


def measure(overrides: list[str], device: torch.device) -> dict[str, float]:
    """Images/s, and peak GB of this process, resident and on the GPU."""
    subject = Subject.create(overrides, device, 2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(subject, Path(folder))
        rate = len(subject.images) / seconds(lambda: train_epoch(trainer))
    figures = {"images/s": rate, "GB resident": peak_memory()}
    if device.type == "cuda":
        figures["GB allocated"] = torch.cuda.max_memory_allocated(device) / 1e9
    return figures


def row(experiment: str, device: torch.device, *extra: str) -> Row:
    """One experiment's line."""
    overrides = [f"experiment={experiment}", *extra]
    # The same batch with extras.
    settings = composition.composed_settings(composition.compose(overrides[:1]))
    batch, images = (
        settings.dataset.data_module.batch_size,
        fitting_batch(settings, device),
    )
    command = [sys.executable, "-m", "benchmarks.memory", "--device", str(device), *overrides]
    command.append(f"dataset.data_module.batch_size={images}")
    process = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    if process.returncode:
        last = process.stderr.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        return Row(f"memory, {experiment}", "not measured", "", last[0])
    figures = json.loads(process.stdout)
    value = ", ".join(f"{amount:.2f} {unit}" for unit, amount in figures.items())
    note = f"{images} of a batch of {batch} images" if images < batch else f"batch {batch}"
    return Row(f"memory, {experiment}", value, "", ", ".join([note, *extra]))


def rows(device: torch.device) -> list[Row]:
    """Every experiment; the wide ones with train.checkpoint_activations too."""
    table = []
    for name in composition.experiments():
        table.append(row(name, device))
        if name.startswith(WIDE):
            table.append(row(name, device, "train.checkpoint_activations=true"))
    return table


if __name__ == "__main__":  # one experiment, in this process
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="+")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.overrides, torch.device(arguments.device))))
