"""What a checkpoint costs, for every experiment: bytes, and seconds that training waits for it.

    python -m benchmarks.saving
    python -m benchmarks.saving --device cuda --folder /scratch

Training waits for the copy in memory; the file is written, flushed and read back by a thread while
it goes on. "while busy" is a matrix product's rate during that writing, relative to before.
"""

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from utils.runs import checkpoints
from utils.runs.background import Saver, snapshot
from utils.settings import build, composition
from utils.training.trainer import Progress

SIZE, SECONDS = 1024, 2.0


def products(a: torch.Tensor, until: float) -> float:
    """Matrix products per second, up to a time."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() < until:
        _ = float((a @ a)[0, 0])
        count += 1
    return count / (time.perf_counter() - began)


def cost(experiment: str, device: str, folder: Path) -> tuple[int, float, float, float]:
    """(bytes, seconds of the copy, seconds of the writing, rate of products while it is written)"""
    settings = composition.resolve(composition.compose([f"experiment={experiment}"]))
    model = build.build_model(settings).to_device(device)
    optimizer, _ = build.build_optimizer(settings, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {"model": model.state_dict(), "ema": None, "optimizer": optimizer.state_dict()}
    state["progress"] = asdict(Progress())
    began = time.perf_counter()
    copy = snapshot(state)
    copying = time.perf_counter() - began

    path, took = folder / f"{experiment}.pth", []

    def write(name: str, state: dict) -> None:
        began = time.perf_counter()
        checkpoints.save(path, settings, state)
        took.append(time.perf_counter() - began)

    a = torch.randn(SIZE, SIZE, device=device)
    before = products(a, time.perf_counter() + SECONDS)
    saver = Saver(write)
    saver.put(["last"], copy)
    count, began = 0, time.perf_counter()
    while not took:
        _ = float((a @ a)[0, 0])
        count += 1
    rate = count / (time.perf_counter() - began)
    saver.finish()
    return path.stat().st_size, copying, took[0], rate / before


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
