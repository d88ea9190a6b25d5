"""Cost of a checkpoint for every experiment: its size, and the seconds that training waits.

    python -m benchmarks.saving
    python -m benchmarks.saving --device cuda --folder /scratch

Training waits for the copy in memory; the file is written, flushed and read back by a thread while
it goes on. "while busy" is a matrix product's rate during that writing, relative to before.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import seconds
from utils.runs import checkpoints
from utils.runs.background import Saver, snapshot
from utils.settings import build, composition
from utils.training.state import TrainingState

SIZE, SECONDS = 1024, 2.0  # of the matrix product


def cost(experiment: str, device: str, folder: Path) -> tuple[int, float, float, float]:
    """(bytes, seconds of the copy, seconds of the writing, rate of products while it is written)"""
    settings = composition.composed_settings(composition.compose([f"experiment={experiment}"]))
    model = build.build_model(settings).to_device(device)
    optimizer, scheduler = build.build_optimizer(settings, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    objective = build.build_objective(settings)
    state = TrainingState(model, optimizer, scheduler, settings.train, objective)
    began = time.perf_counter()
    copy = snapshot(state.state_dict())
    copying = time.perf_counter() - began

    path, durations = folder / f"{experiment}.pth", []

    def write(name: str, state: dict) -> None:
        began = time.perf_counter()
        checkpoints.save(path, settings.plain, state)
        durations.append(time.perf_counter() - began)

    a = torch.randn(SIZE, SIZE, device=device)
    before = 1.0 / seconds(lambda: float((a @ a)[0, 0]), SECONDS)
    saver = Saver(write)
    saver.put(["last"], copy)
    count, began = 0, time.perf_counter()
    while not durations:
        _ = float((a @ a)[0, 0])
        count += 1
    rate = count / (time.perf_counter() - began)
    saver.finish()
    return path.stat().st_size, copying, durations[0], rate / before


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", help="on the disk to measure; default: the current folder's")
    arguments = parser.parse_args()
    table = Table(title=f"Checkpoints, from {arguments.device}")
    for column in ("experiment", "MB", "training waits, s", "writing, s", "while busy"):
        table.add_column(column, justify="left" if column == "experiment" else "right")
    with tempfile.TemporaryDirectory(dir=arguments.folder or ".") as folder:
        for experiment in composition.experiments():
            size, copying, writing, rate = cost(experiment, arguments.device, Path(folder))
            figures = (f"{size / 1e6:.1f}", f"{copying:.3f}", f"{writing:.2f}", f"{rate:.2f}")
            table.add_row(experiment, *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
