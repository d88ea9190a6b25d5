"""Training by one process and by several: images per second, and the cost of communication.

    python -m benchmarks.several
    mpiexec -n 2 python -m benchmarks.several experiment=mnist_dct_ladder

The batch is the experiment's own, divided over the processes. "without communication" is the same
step with every process keeping its gradients to itself; OMP_NUM_THREADS sets the threads.
"""

import utils.processes.openmp  # noqa: F401  before anything that loads OpenMP

# isort: split
import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.measure import Subject
from benchmarks.step import make_trainer, train_epoch
from utils.processes import collectives, devices, launch
from utils.training.trainer import Trainer

STEPS = 8


def rate(trainer: Trainer, communicate: bool) -> float:
    """Images per second over all processes."""
    with collectives.no_sync(trainer.step.loss_module, not communicate):
        train_epoch(trainer)  # warms up
        began = time.perf_counter()
        train_epoch(trainer)
    return trainer.batches.batch_size * STEPS / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", default=["experiment=mnist_dct_ladder"])
    processes = launch.start("auto")
    device = devices.pick_device("auto", processes)
    launch.join(processes, device)
    overrides = [*parser.parse_args().overrides, "train.grad_skip_thr=0"]
    subject = Subject.create(overrides, device, STEPS, processes)
    name, threads = subject.settings.name, torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(subject, Path(folder), processes=processes)
        connected = rate(trainer, True)
        text = f"{name}, {processes.describe()}, {threads} thread(s) each, on {device.type}: "
        text += f"{connected:,.4g} images/s"
        if processes.world > 1:
            separate = rate(trainer, False)
            sent = sum(p.numel() * p.element_size() for p in subject.model.parameters())
            text += f"; {sent / 1e6:.2f} MB of gradients a step; without communication "
            share = max(0.0, 1 - connected / separate)
            text += f"{separate:,.4g} images/s, so it is {share:.1%} of the step"
    if processes.is_main:
        print(text)
    launch.stop()


if __name__ == "__main__":
    main()
