"""The parts of `python -m benchmarks.gpu`, each called as a process of its own.

    python -m benchmarks.gpu_parts NAME --device cuda --root /path/to/data

Prints a part's figures as JSON. On a CPU, models and numbers of steps are as small as can be: that
tries the code and measures nothing.
"""

import utils.processes.openmp  # noqa: F401  before anything that loads OpenMP

# isort: split
import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks import inference, step
from benchmarks.measure import Subject, matrix_product, peak_memory, seconds
from model.objective import bits_per_dim
from utils.evaluation.bound import posterior_collapse
from utils.processes import collectives
from utils.processes.launch import Processes
from utils.settings import build, composition
from utils.settings.images import load_images
from utils.training.static import StaticSteps, why_not
from utils.training.trainer import Trainer

FOLDER = Path(__file__).resolve().parent.parent
# GB that a bf16 step must move when all is fused (docs/gpu.md), by experiment and batch.
FUSED_GB = {
    ("mnist_dct_ladder", 128): 2.25,
    ("mnist_dct_ladder", 512): 8.8,
    ("cifar_dct_ladder", 96): 83.0,
    ("cifar_dct_ladder", 384): 331.0,
}
SMALL = ["model.num_ch=16", "model.num_mix=2"]  # the second of CIFAR-10 only
LOOKED_AT = 1_000  # images whose bound is taken after a minute of training


@dataclass(frozen=True)
class Machine:
    """Where a part runs, and how much it does there."""

    device: torch.device
    root: str

    @property
    def small(self) -> bool:
        """Whether the code is tried and nothing measured."""
        return self.device.type == "cpu"

    @property
    def at_least(self) -> float:
        """Seconds that a timing takes."""
        return 0.1 if self.small else 2.0

    def subject(self, experiment: str, batch: int, *overrides: str, steps: int = step.STEPS):
        """The experiment's untrained model, and random images for an epoch of so many steps."""
        if self.small:
            batch, overrides = 4, (*overrides, *SMALL[: 1 if "mnist" in experiment else None])
        size = f"dataset.data_module.batch_size={batch}"
        return Subject.create([f"experiment={experiment}", size, *overrides], self.device, steps)

    def real(self, batch: int, *overrides: str, device: torch.device | None = None) -> Subject:
        """MNIST's model and images; the digits', which come with a package, to try the code."""
        experiment = "digits_dct_ladder" if self.small else "mnist_dct_ladder"
        places = [f"dataset.data_module.batch_size={batch}"]
        places += [] if self.small else [f"dataset.root={self.root}"]
        composed = composition.compose([f"experiment={experiment}", *places, *overrides])
        settings, device = composition.composed_settings(composed), device or self.device
        torch.manual_seed(0)
        images = load_images(settings).train.to(device)
        model = build.build_model(settings).to_device(device)
        model.fit_context(images, settings.dataset.levels - 1)
        return Subject(settings, model, images)


def machine(here: Machine) -> dict:
    """What it is, its rate of products and of copies."""
    cuda = here.device.type == "cuda"
    figures = {
        "name": torch.cuda.get_device_name(here.device) if cuda else "CPU",
        "PyTorch": torch.__version__,
        "copying, TB/s": bandwidth(here) / 1e12,
    }
    if cuda:
        figures["product in bf16, TFLOP/s"] = matrix_product(here.device, torch.bfloat16) / 1e12
        figures["product in float32, TFLOP/s"] = matrix_product(here.device) / 1e12
    return figures


def bandwidth(here: Machine) -> float:
    """Bytes/s read and written by a copy within the device's memory."""
    source = torch.zeros(2**20 if here.small else 2**28, device=here.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), here.at_least)


def of_step(here: Machine, experiment: str, batch: int, precision: str) -> dict:
    """The step launched kernel by kernel, then as a captured graph."""
    figures = {}
    for name, capture in (("plain", "false"), ("captured", "true")):
        timed = timing(here, experiment, batch, precision, f"train.capture={capture}")
        figures |= {f"{name}, {key}": value for key, value in timed.items()}
    return figures


def of_compiled(here: Machine, experiment: str, batch: int, precision: str) -> dict:
    """The step compiled and captured; the time of its first epoch too."""
    began = time.perf_counter()
    overrides = ["train.capture=true", *([] if here.small else ["train.compile=true"])]
    timed = timing(here, experiment, batch, precision, *overrides)
    timed["seconds in all"] = time.perf_counter() - began
    return {f"compiled, {key}": value for key, value in timed.items()}


def timing(here: Machine, experiment: str, batch: int, precision: str, *overrides: str) -> dict:
    """Rate, share of the roofline, launches and waits of a step; why it isn't captured, if so.

    Launches are counted by a trainer made anew, which would be compiled anew.
    """
    amp = f"train.use_amp={str(precision == 'bf16').lower()}"
    subject = here.subject(experiment, batch, amp, *overrides)
    with tempfile.TemporaryDirectory() as folder:
        trainer = step.make_trainer(subject, Path(folder))
        reasons = note_reasons(trainer)
        step.train_epoch(trainer)  # warms up
        duration = seconds(lambda: step.train_epoch(trainer), here.at_least) / step.STEPS
    figures = {"images/s": subject.batch_size / duration, "ms": 1e3 * duration}
    if precision == "bf16":
        ideal = 1e9 * FUSED_GB[experiment, batch] / bandwidth(here)
        figures["share of the fused bytes' roofline"] = ideal / duration
    if here.device.type == "cuda" and "train.compile=true" not in overrides:
        figures["launches"], figures["waits"] = step.launches(subject)
    return figures | ({"not captured": reasons[0]} if reasons else {})


def note_reasons(trainer: Trainer) -> list[str]:
    """A list that takes in what the trainer says when it cannot capture its steps."""
    reasons = []
    if isinstance(trainer.deferred, StaticSteps):
        trainer.deferred.line = reasons.append
    elif trainer.settings.capture and trainer.model.device.type == "cuda":
        reasons.append(why_not(trainer.step, trainer.batches))
    return reasons


def curve(here: Machine) -> dict:
    """The first steps' losses (bits/dim) on the device against float32 on the CPU."""
    kinds = {"cpu float32": ("cpu", "false"), "float32": (here.device, "false")}
    kinds["bf16"] = (here.device, "true")
    losses = {
        name: first_losses(here, 5 if here.small else 200, torch.device(device), amp)
        for name, (device, amp) in kinds.items()
    }
    figures = {f"losses, {name}": values for name, values in losses.items()}
    reference = torch.tensor(losses.pop("cpu float32"))
    figures["last loss, cpu float32"] = reference[-1].item()
    for name, values in losses.items():
        difference = torch.tensor(values) - reference
        figures[f"last loss, {name}"] = values[-1]
        figures[f"largest difference, {name}"] = difference.abs().max().item()
        figures[f"mean difference, {name}"] = difference.mean().item()
    return figures


def first_losses(here: Machine, count: int, device: torch.device, amp: str) -> list[float]:
    """So many steps' losses, on batches of 32."""
    overrides = [f"train.use_amp={amp}", "train.log_every=1"]
    subject, losses, before = here.real(32, *overrides, device=device), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        trainer = step.make_trainer(subject, Path(folder))
        source = (trainer.deferred or trainer.batches).epoch(0)
        for _, micro_batches in zip(range(count), source, strict=False):
            trainer.train_step(micro_batches, trainer.objective.beta(0))
            losses.append(trainer.progress.sums[1] - before)
            before = trainer.progress.sums[1]
    return losses


def minute(here: Machine) -> dict:
    """Epochs/s of real training in bf16 for a minute, and the bound that it comes to."""
    subject = here.real(128, "train.use_amp=true")
    with tempfile.TemporaryDirectory() as folder:
        trainer = step.make_trainer(subject, Path(folder))
        reasons = note_reasons(trainer)
        epochs, began, spent = 0, time.perf_counter(), 0.0
        while spent < (1.0 if here.small else 60.0):
            trainer.progress.sums, trainer.progress.epoch = [], epochs
            step.train_epoch(trainer)
            epochs, spent = epochs + 1, time.perf_counter() - began
        count = min(LOOKED_AT, len(subject.images))
        batches = subject.evaluation_batches(count)
        report = posterior_collapse(subject.model, batches, 0, 1, lambda n: None).report()
    dims = math.prod(subject.model.image_shape)
    return {
        "epochs": epochs,
        "epochs/s": epochs / spent,
        "training loss of the last, bits/dim": trainer.progress.sums[1] / trainer.progress.sums[0],
        "bound of training images, nats": report.nelbo,
        "bound of training images, bits/dim": bits_per_dim(report.nelbo, dims),
    } | ({"not captured": reasons[0]} if reasons else {})


def rates(here: Machine) -> dict:
    """Evaluation and sampling."""
    overrides = ["experiment=mnist_dct_ladder", "dataset.data_module.batch_size=128"]
    overrides += SMALL[:1] if here.small else []
    table = inference.rows(overrides, here.device)
    return {row.measure: row.value for row in table}


def memory(here: Machine) -> dict:
    """GB that training takes with activations kept or computed again, and its rate."""
    figures = {}
    for name, recompute in (("recomputing", "true"), ("keeping", "false")):
        rate, peak = footprint(here, f"train.checkpoint_activations={recompute}")
        figures |= {f"{name}, images/s": rate, f"{name}, GB": peak}
    return figures


def footprint(here: Machine, override: str) -> tuple[float, float]:
    """(images/s, GB) of CIFAR-10's step in bf16; on a CPU the GB are the process's so far."""
    subject = here.subject("cifar_dct_ladder", 384, "train.use_amp=true", override, steps=3)
    if not here.small:
        gc.collect()  # the trainer before, with what its graph holds
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = step.make_trainer(subject, Path(folder))
        step.train_epoch(trainer)
        duration = seconds(lambda: step.train_epoch(trainer), here.at_least)
    peak = peak_memory() if here.small else torch.cuda.max_memory_reserved() / 1e9
    return len(subject.images) / duration, peak


def two(here: Machine) -> dict:
    """Two processes on one device, joined by gloo: their rate, and whether they agree."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.gpu_parts", "one_of_two"]
        command += ["--device", str(here.device), "--root", folder]
        start = partial(subprocess.Popen, command, cwd=FOLDER, text=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        ranks = [start(env={**os.environ, "RANK": rank}, **pipes) for rank in "01"]
        told = [process.communicate() for process in ranks]
    for process, (_, errors) in zip(ranks, told, strict=True):
        if process.returncode:
            raise RuntimeError(f"one of the two processes failed: {errors.strip()[-200:]}")
    return json.loads(told[0][0].splitlines()[-1])


def one_of_two(here: Machine) -> dict:
    """One of them; they meet in a file in `root`."""
    processes = Processes(int(os.environ["RANK"]), 2, local_world=2)
    meeting = f"file://{here.root}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=processes.rank, world_size=2)
    subject = here.subject("mnist_dct_ladder", 128, "train.capture=false")
    with tempfile.TemporaryDirectory() as folder:
        trainer = step.make_trainer(subject, Path(folder), processes=processes)
        step.train_epoch(trainer)
        began = time.perf_counter()
        step.train_epoch(trainer)
        rate = subject.batch_size * step.STEPS / (time.perf_counter() - began)
    differing = collectives.differing(subject.model)
    dist.destroy_process_group()
    loss = trainer.progress.sums[1] / trainer.progress.sums[0]
    return {"images/s": rate, "loss, bits/dim": loss, "weights that differ": str(differing)}


def main() -> None:
    """Measure one part and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--root", default="data")
    arguments = parser.parse_args()
    here = Machine(torch.device(arguments.device), arguments.root)
    if here.device.type == "cuda":
        here = Machine(torch.device("cuda", 0), arguments.root)
    kind, *values = arguments.part.split(":")
    if values:
        experiment, batch, precision = values
        measure = {"step": of_step, "compiled": of_compiled}[kind]
        figures = measure(here, experiment, int(batch), precision)
    else:
        parts = (machine, curve, minute, rates, memory, two, one_of_two)
        figures = {part.__name__: part for part in parts}[kind](here)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
