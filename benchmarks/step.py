"""The training step within the trainer's own loop: data, loss, clipping, optimiser, logging.

A share is of a rate of this machine's own, measured after every epoch: rates differ between
machines and hours. There are two: of a matrix product, and of the model's fastest 3×3 convolution.
"""

import math
import statistics
import tempfile
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.convolutions import convolutions, fastest, seconds_of_all
from benchmarks.measure import NO_GPU, Row, Subject, matrix_product, seconds
from datasets.loaders import TrainBatches
from model.noise import Noise
from utils.processes.launch import Processes
from utils.runs.signals import Signals
from utils.settings import build
from utils.terminal import Terminal
from utils.tracking.tracker import LocalSink, Tracker
from utils.training.trainer import Trainer

STEPS, EPOCHS = 12, 5  # per epoch; the first epoch warms up
LOADED = 20_000  # images of the epoch in which loading alone is timed
GPU_GOALS = (("mnist_dct_ladder", 50_000), ("cifar_dct_ladder", 3_000))  # images/s
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


def make_trainer(
    subject: Subject,
    folder: Path,
    after_epoch: Callable[..., object] = lambda *_: None,
    processes: Processes = Processes(),  # noqa: B008
) -> Trainer:
    """A trainer as run_experiment.py makes it, without checkpoints."""
    settings = {"max_epochs": EPOCHS, "eval_freq": 1, "ema_rate": 0.0, "on_nonfinite": "skip"}
    settings["checkpoint_every"] = math.inf
    return Trainer(
        subject.model,
        build.build_objective(subject.settings),
        TrainBatches(
            subject.images,
            subject.max_value,
            subject.batch_size,
            seed=0,
            rank=processes.rank,
            world=processes.world,
        ),
        subject.evaluation_batches(8),
        *build.build_optimizer(subject.settings, subject.model),
        subject.settings.train.model_copy(update=settings),
        saver=None,
        draw_figures=after_epoch,
        tracker=Tracker(folder, [LocalSink(folder / "metrics.jsonl")]),
        terminal=Terminal(shown=False),
        signals=Signals(0),
    )


def train_epoch(trainer: Trainer) -> None:
    """All steps of the current epoch, from its first."""
    trainer.progress.batch = 0
    trainer.train_epoch()


def flops_per_image(subject: Subject) -> float:
    """FLOP per image of a training step: three times the forward pass.

    Counted in the backward pass itself, depthwise convolutions would come out as dense ones.
    """
    x = subject.evaluation_batches(8).examples(8)
    noise = Noise.keyed(torch.arange(8, device=x.device), 0)
    subject.model.train()  # in evaluation mode the prior would go through all its steps
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.model(x, noise=noise)
    return 3.0 * counter.get_total_flops() / 8


def training(
    subject: Subject, *yardsticks: Callable[[], float]
) -> tuple[float, list[tuple[float, float]]]:
    """(images/s, [(share of a yardstick's FLOP/s, those FLOP/s) for each]): medians over epochs."""
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            subject, Path(folder), lambda *_: peaks.append([peak() for peak in yardsticks])
        )
        trainer.fit()
        rates = [row["train/images_per_second"] for row in trainer.tracker.local.rows()]
    flops = flops_per_image(subject)
    found = []
    for column in zip(*peaks, strict=True):
        shares = [rate * flops / peak for rate, peak in zip(rates, column, strict=True)]
        found.append((statistics.median(shares[1:]), statistics.median(column[1:])))
    return statistics.median(rates[1:]), found


def loading(subject: Subject) -> float:
    """Seconds that loading takes per step, over a whole epoch of many images."""
    shape = (LOADED, *subject.images.shape[1:])
    images = torch.zeros(shape, dtype=torch.uint8, device=subject.device)
    batches = TrainBatches(
        images, subject.max_value, subject.batch_size, seed=0, horizontal_flip=True
    )
    return seconds(lambda: deque(batches.epoch(0), maxlen=0)) / len(batches)


def launches(subject: Subject) -> tuple[float, float]:
    """(kernels launched, synchronisations) per step on a GPU, in an epoch of STEPS.

    The epoch's own are among them: what it copies at its start, and the readings of the losses.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(subject, Path(folder))
        train_epoch(trainer)  # warms up
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as events:
            train_epoch(trainer)
        launched = sum(e.count for e in events.key_averages() if e.key.startswith(LAUNCHES))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                train_epoch(trainer)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    waited = sum("called a synchronizing" in str(warning.message) for warning in caught)
    return launched / STEPS, waited / STEPS


def rows(overrides: list[str], device: torch.device) -> list[Row]:
    """One experiment's step in float32, against both yardsticks, and its loader."""
    subject = Subject.create([*overrides, "train.use_amp=false"], device, STEPS)
    name, kinds = subject.settings.name, convolutions(subject)
    yardstick = fastest(kinds)
    rate, [(of_product, product), (of_convolution, convolution)] = training(
        subject, lambda: matrix_product(device), yardstick.rate
    )
    flops = flops_per_image(subject)
    allowed = subject.batch_size * flops / seconds_of_all(kinds) / convolution
    loader = loading(subject) * rate / subject.batch_size
    goals = ("≥ 0.65", "≥ 0.60") if device.type == "cpu" else ("", "")
    size = f"3×3, {', '.join(map(str, yardstick.x.shape))}, forward and backward"
    return [
        Row("matrix product", f"{product / 1e9:,.0f} GFLOP/s", "", "2048³, float32"),
        Row("convolution", f"{convolution / 1e9:,.0f} GFLOP/s", "", size),
        Row("training", f"{rate:,.4g} images/s", "", f"{flops / 1e9:.3f} GFLOP per image"),
        Row("training step, share of the product", f"{of_product:.2f}", goals[0], name),
        Row("  share of the convolution", f"{of_convolution:.2f}", goals[1], name),
        Row("  if its convolutions were all", f"{allowed:.2f}", "", "nothing between them"),
        Row("loader, share of the step", f"{loader:.2%}", "< 2 %", f"{name}, with flips"),
    ]


def gpu_rows(device: torch.device) -> list[Row]:
    """The two experiments that have a goal on a GPU, in bfloat16."""
    peak = matrix_product(device, torch.bfloat16) if device.type == "cuda" else None
    table = [Row("matrix product, bf16", _tera(peak), "", "8192³")]
    for name, goal in GPU_GOALS:
        value = dict.fromkeys(("rate", "share", "launched", "waited"), NO_GPU)
        if peak:
            overrides = [f"experiment={name}", "train.use_amp=true"]
            subject = Subject.create(overrides, device, STEPS)
            rate, [(share, _)] = training(subject, lambda: matrix_product(device, torch.bfloat16))
            launched, waited = launches(subject)
            value = {
                "rate": f"{rate:,.0f} images/s",
                "share": f"{share:.3f}",
                "launched": f"{launched:,.0f}",
                "waited": f"{waited:.2f}",
            }
        table += [
            Row("training, GPU", value["rate"], f"≥ {goal:,}", f"{name}, bf16"),
            Row("  share of the bf16 product", value["share"], "", name),
            Row("  launches per step", value["launched"], "", name),
            Row("  synchronisations per step", value["waited"], f"≤ {4 / STEPS:.2f}", name),
        ]
    return table


def _tera(peak: float | None) -> str:
    return f"{peak / 1e12:,.0f} TFLOP/s" if peak else NO_GPU
