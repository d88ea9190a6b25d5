"""Cost of a data set: seconds until it is ready, images per second of the loader, memory.

    python -m benchmarks.data dataset=mnist dataset.root=/path/to/data
    python -m benchmarks.data dataset=image_folder dataset.root=/path/to/images
    python -m benchmarks.data --generated 1000000

"first start": without a cache of decoded images; "again": the next start. The loader is timed
alone, over an epoch's batches (up to 2,000) without the first ten; "on disk": reading from the
cache's file instead of from memory, in turns. Memory: the peak until then.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import peak_memory
from datasets.loaders import TrainBatches
from datasets.splits import ImageSplits
from utils.settings import composition
from utils.settings.images import load_images
from utils.settings.schema import Settings
from utils.training.memory import disable_malloc_trim

MAX_BATCHES, WARM_UP = 2_000, 10
TURNS = 7  # of each loader; the median is reported
CHUNK = 10_000  # generated images at a time


def load(settings: Settings) -> tuple[float, ImageSplits]:
    """(seconds until the images are ready, the images)"""
    start = time.perf_counter()
    splits = load_images(settings)
    return time.perf_counter() - start, splits


def rate(settings: Settings, splits: ImageSplits) -> float:
    """Images per second of training's batches, flips included."""
    dataset = settings.dataset
    batches = TrainBatches(
        splits.train,
        splits.max_value,
        dataset.data_module.batch_size,
        settings.train.seed,
        dataset.horizontal_flip,
    )
    count = min(len(batches), MAX_BATCHES)
    steps = batches.epoch(0)
    for index in range(count):
        if index == min(WARM_UP, count - 1):
            began = time.perf_counter()
        next(steps)
    timed = count - min(WARM_UP, count - 1)
    return timed * batches.batch_size / (time.perf_counter() - began)


def generate(path: Path, count: int) -> None:
    """An .npy file of so many random colour images of 32×32, without holding them."""
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, 32, 32, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        random = np.random.default_rng(0)
        for first in range(0, count, CHUNK):
            file.write(random.bytes(min(CHUNK, count - first) * 32 * 32 * 3))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generated", type=int, help="so many random images of 32×32")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    disable_malloc_trim()
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*arguments.overrides]
        if arguments.generated:
            path = Path(folder, "generated.npy")
            generate(path, arguments.generated)
            overrides += ["dataset=image_folder", f"dataset.root={path}"]
        if not any("dataset=mnist" in o or "omniglot" in o for o in overrides):
            overrides.insert(0, "experiment=cifar_dct_ladder")
        else:
            overrides.insert(0, "experiment=mnist_dct_ladder")
        settings = composition.composed_settings(composition.compose(overrides))
        in_memory = settings
        stored = settings.dataset.cache is not None
        if stored:
            overrides.append(f"dataset.cache={Path(folder, 'cache')}")
            settings, in_memory = (
                composition.composed_settings(
                    composition.compose([*overrides, f"dataset.memory_limit={limit}"])
                )
                for limit in (0, 1e6)
            )
        rows, before, sources = [], peak_memory(), {}
        first, splits = load(settings)
        rows.append(
            ("first start", f"{first:.1f} s", f"{peak_memory():.2f} GB, {before:.2f} of it before")
        )
        if stored:
            again, sources["loader, on disk"] = load(settings)
            rate(settings, sources["loader, on disk"])
            rows.append(
                ("again, on disk, an epoch of it", f"{again:.1f} s", f"{peak_memory():.2f} GB")
            )
        again, splits = load(in_memory)
        sources["loader"] = splits
        rows.append(("again", f"{again:.1f} s", f"{peak_memory():.2f} GB"))
        rates = [[rate(settings, source) for source in sources.values()] for _ in range(TURNS)]
        for name, values in zip(sources, zip(*rates, strict=True), strict=True):
            rows.append((name, f"{statistics.median(values):,.0f} images/s", ""))
    name = settings.dataset.name
    table = Table(title=f"{name}: {splits.counts} images of {splits.image_shape}")
    for column in ("measure", "value", "memory"):
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
