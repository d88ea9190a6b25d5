"""What the measures share: a row of the table, clocks, this machine's own rates, a model to try."""

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from utils.processes.launch import Processes
from utils.processes.threads import use_threads
from utils.settings import build, composition
from utils.training.memory import keep_freed

NO_GPU = "not measured: no GPU"


@dataclass(frozen=True)
class Row:
    """A line of the table: what, how much, how much it should be, and what that is of."""

    measure: str
    value: str
    goal: str = ""
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """An experiment's untrained model on a device, and random images: what they show is no matter.

    images (N, C, H, W) uint8.
    """

    settings: dict
    model: LadderVAE
    images: Tensor

    @classmethod
    def made(
        cls,
        overrides: Sequence[str],
        device: torch.device,
        batches: int,
        processes: Processes = Processes(),  # noqa: B008
    ) -> "Subject":
        """Of an experiment and so many training batches, in a process set up as for training."""
        keep_freed()
        settings = composition.composed_settings(composition.compose(list(overrides)))
        use_threads(settings, processes)
        dataset = settings["dataset"]
        torch.manual_seed(0)
        model = build.build_model(settings).to_device(device)
        count = max(batches * dataset["data_module"]["batch_size"], 8)
        shape = (count, dataset["channels"], dataset["image_size"], dataset["image_size"])
        images = torch.randint(0, dataset["levels"], shape, device=device, dtype=torch.uint8)
        model.fit_context(images, dataset["levels"] - 1)
        return cls(settings, model, images)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.images.device

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return self.settings["dataset"]["data_module"]["batch_size"]

    @property
    def top(self) -> int:
        """The largest grey value."""
        return self.settings["dataset"]["levels"] - 1

    def held_out(self, count: int) -> EvaluationBatches:
        """The first images, to evaluate."""
        return EvaluationBatches(self.images[:count], self.top, count)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(action: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of a call: the median of so many, after one that does not count."""
    took = []
    for _ in range(1 + repeats):
        wait(device)
        began = time.perf_counter()
        action()
        wait(device)
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


def peak_memory() -> float:
    """GB that this process held at its highest; getrusage would tell its parent's where greater."""
    status = Path("/proc/self/status").read_text()
    return 1024e-9 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def matrix_product(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of a matrix product: 2048³ in float32, 8192³ in bfloat16."""
    size = 2048 if dtype == torch.float32 else 8192
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2.0 * size**3 / seconds(lambda: a @ b, device, 5)


def show(title: str, rows: Sequence[Row]) -> None:
    """The table."""
    table = Table(title=title, title_justify="left")
    for column in ("measure", "value", "goal", "of"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.measure, row.value, row.goal, row.note)
    Console(width=110).print(table)  # in a log too
