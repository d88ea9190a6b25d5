"""Speed of training, evaluation and sampling, beside this machine's own matrix product.

    python -m benchmarks.speed
    python -m benchmarks.speed --device cuda experiment=mnist_dct_ladder train.use_amp=true

Images are random: nothing here depends on what they show. Rates differ between machines and hours;
the share of the matrix product, measured in the same run, is what to compare.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from datasets.loaders import EvaluationBatches, TrainBatches
from model import LadderVAE
from model.noise import Noise
from utils import build, config
from utils.evaluation import likelihood
from utils.signals import Signals
from utils.terminal import Terminal
from utils.tracking import LocalSink, Tracker
from utils.trainer import Trainer
from utils.validation import validate

SIZE, STEPS, SAMPLES, IMAGES = 2048, 12, 100, 64


def seconds(action: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Seconds per call, after one that does not count."""
    action()
    _wait(device)
    began = time.perf_counter()
    for _ in range(repeats):
        action()
    _wait(device)
    return (time.perf_counter() - began) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_product(device: torch.device) -> float:
    """FLOP/s of a 2048³ float32 matrix product."""
    a, b = torch.randn(2, SIZE, SIZE, device=device)
    return 2.0 * SIZE**3 / seconds(lambda: a @ b, device, 5)


def training(settings: dict, model: LadderVAE, images: torch.Tensor) -> tuple[float, float]:
    """(images/s, FLOP per image) of the trainer's own loop: data, loss, clipping, optimiser."""
    batch = settings["dataset"]["data_module"]["batch_size"]
    top = settings["dataset"]["levels"] - 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sink = LocalSink(Path(folder) / "metrics.jsonl")
        trainer = Trainer(
            model,
            build.build_objective(settings),
            TrainBatches(images, top, batch, seed=0),
            EvaluationBatches(images[:8], top, 8),
            *build.build_optimizer(settings, model),
            {**settings["train"], "max_epochs": 2, "eval_freq": 10**9},  # the first warms up
            None,
            lambda model, epoch, step: None,
            Tracker(Path(folder), [sink]),
            Terminal(shown=False),
            Signals(0),
        )
        trainer.fit()
        rows = sink.rows()
        x = EvaluationBatches(images[:8], top, 8).first(8)
        keys = Noise.keyed(torch.arange(8, device=x.device), 0).keys
        model.train()  # in evaluation the prior takes all of its steps
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            trainer.loss_module(x, keys, 1.0)
    # Backward is twice the forward pass; counted, its depthwise convolutions come out dense.
    return rows[-1]["train/images_per_second"], 3.0 * counter.get_total_flops() / 8


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", default=["experiment=mnist_dct_ladder"])
    arguments = parser.parse_args()
    settings = config.resolve(config.compose(arguments.overrides))
    validate(settings)
    device, dataset = torch.device(arguments.device), settings["dataset"]
    model = build.build_model(settings).to(device, memory_format=torch.channels_last)
    count = STEPS * dataset["data_module"]["batch_size"]
    shape = (count, dataset["channels"], dataset["image_size"], dataset["image_size"])
    images = torch.randint(0, dataset["levels"], shape, device=device).to(torch.uint8)
    model.fit_context(images, dataset["levels"] - 1)

    peak = matrix_product(device)
    rate, flops = training(settings, model, images)
    model.eval()
    held_out = EvaluationBatches(images[:IMAGES], dataset["levels"] - 1, IMAGES)
    paths = settings["model"]["is_k_prior"]
    scores = {
        estimator: IMAGES
        * SAMPLES
        / seconds(
            lambda e=estimator: likelihood(model, held_out, e, SAMPLES, paths, 0, lambda n: None),
            device,
        )
        for estimator in ("iwae", "published")
    }
    sampling = 500 / seconds(lambda: model.sample(500), device)

    table = Table(title=f"{settings['name']} on {device}, {torch.get_num_threads()} threads")
    for column in ("measure", "value", "note"):
        table.add_column(column)
    for row in (
        ("matrix product", f"{peak / 1e9:,.0f} GFLOP/s", f"{SIZE}³, float32"),
        ("training", f"{rate:,.0f} images/s", f"{flops / 1e9:.3f} GFLOP per image"),
        ("share of the product", f"{rate * flops / peak:.2f}", "training"),
        *((f"evaluation, {e}", f"{v:,.0f} image-samples/s", "K = 100") for e, v in scores.items()),
        ("sampling", f"{sampling:,.0f} images/s", "batches of 500"),
    ):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
