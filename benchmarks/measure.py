"""What the benchmarks share: table rows, timing, this machine's own rates, a model to measure."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.benchmark import Timer

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from utils.processes.launch import Processes
from utils.settings import build, composition
from utils.settings.schema import Settings
from utils.settings.threads import use_threads
from utils.training.memory import disable_malloc_trim

NO_GPU = "not measured: no GPU"


@dataclass(frozen=True)
class Row:
    """A line of the table: the measure, its value, the goal, and what was measured."""

    measure: str
    value: str
    goal: str = ""
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """An experiment's untrained model on a device, and random images (N, C, H, W) uint8."""

    settings: Settings
    model: LadderVAE
    images: Tensor

    @classmethod
    def create(
        cls,
        overrides: Sequence[str],
        device: torch.device,
        batches: int,
        processes: Processes = Processes(),  # noqa: B008
    ) -> "Subject":
        """Compose an experiment and make images for so many training batches.

        Sets memory and threads of this process up as training does.
        """
        disable_malloc_trim()
        settings = composition.composed_settings(composition.compose(list(overrides)))
        use_threads(settings, processes)
        dataset = settings.dataset
        torch.manual_seed(0)
        model = build.build_model(settings).to_device(device)
        count = max(batches * dataset.data_module.batch_size, 8)
        shape = (count, dataset.channels, dataset.image_size, dataset.image_size)
        images = torch.randint(0, dataset.levels, shape, device=device, dtype=torch.uint8)
        model.fit_context(images, dataset.levels - 1)
        return cls(settings, model, images)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.images.device

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return self.settings.dataset.data_module.batch_size

    @property
    def max_value(self) -> int:
        """The largest grey level."""
        return self.settings.dataset.levels - 1

    def evaluation_batches(self, count: int) -> EvaluationBatches:
        """The first images, as one batch to evaluate."""
        return EvaluationBatches(self.images[:count], self.max_value, count)


def seconds(action: Callable[[], object], at_least: float = 2.0) -> float:
    """Median seconds of a call, over as many as take `at_least` seconds, after a warm-up.

    The timer synchronises a GPU before it reads the clock.
    """
    timer = Timer("action()", globals={"action": action}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=at_least).median


def peak_memory() -> float:
    """Peak resident GB of this process; getrusage would give its parent's if greater."""
    status = Path("/proc/self/status").read_text()
    return 1024e-9 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def matrix_product(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """FLOP/s of a matrix product: 2048³ in float32, 8192³ in bfloat16."""
    size = 2048 if dtype == torch.float32 else 8192
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    return 2.0 * size**3 / seconds(lambda: a @ b)


def show(title: str, rows: Sequence[Row]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for column in ("measure", "value", "goal", "of"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.measure, row.value, row.goal, row.note)
    Console(width=110).print(table)  # as wide where the output goes to a file
