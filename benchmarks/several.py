"""Training by one process and by several: images per second, and what their talk costs.

    python -m benchmarks.several
    mpiexec -n 2 python -m benchmarks.several experiment=mnist_dct_ladder

The batch is the experiment's own, divided over the processes. "without talk" is the same step with
every process keeping its gradients to itself; threads are what OMP_NUM_THREADS says.
"""

import utils.processes.openmp  # noqa: F401, I001  before anything that loads OpenMP

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import Subject
from benchmarks.step import make_trainer
from utils.processes import collectives
from utils.processes import devices
from utils.processes import launch
from utils.training.trainer import Trainer

STEPS = 8


def rate(trainer: Trainer, talk: bool) -> float:
    """Images per second over all processes; the first steps warm up."""
    batches = trainer.batches
    with collectives.no_sync(trainer.loss_module, not talk):
        for index, passes in enumerate(batches.epoch(0)):
            if index == STEPS:
                began = time.perf_counter()
            trainer._train_step(passes, 1.0)
    return batches.batch_size * STEPS / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", default=["experiment=mnist_dct_ladder"])
    processes = launch.start("auto")
    device = devices.pick_device("auto", processes)
    overrides = [*parser.parse_args().overrides, "train.grad_skip_thr=0"]
    subject = Subject.made(overrides, device, 2 * STEPS, processes)
    name, threads = subject.settings["name"], torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(subject, Path(folder), processes=processes)
        talking = rate(trainer, True)
        told = f"{name}, {processes.describe()}, {threads} thread(s) each, on {device.type}: "
        told += f"{talking:,.4g} images/s"
        if processes.world > 1:
            silent = rate(trainer, False)
            sent = sum(p.numel() * p.element_size() for p in subject.model.parameters())
            told += f"; {sent / 1e6:.2f} MB of gradients a step; without talk {silent:,.4g}"
            told += f" images/s, so it is {max(0.0, 1 - talking / silent):.1%} of the step"
    if processes.is_main:
        print(told)
    launch.stop()


if __name__ == "__main__":
    main()
