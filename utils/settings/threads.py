"""The number of compute threads: a function of the model's size, so that results are reproducible.

Rounding depends on the number of threads. Therefore `train.threads: auto` considers the settings
and the number of processors, never their current load.
"""

import os

import torch

from utils.processes.launch import Processes
from utils.settings.schema import Settings

ELEMENTS_PER_THREAD = 800_000  # of the largest map; with fewer, threads mostly wait


def number_of_threads(settings: Settings, processes: Processes) -> int:
    """train.threads; where it is auto, a thread for every 800,000 elements of the largest map.

    That is the map of a micro-batch at full resolution: 205,000 elements for the digits (one
    thread), 3.2 million for MNIST (four), 149 million for CIFAR-10.
    """
    wanted, dataset = settings.train.threads, settings.dataset
    if wanted != "auto":
        return wanted
    passes = processes.world * settings.train.acc_grad
    images = -(-dataset.data_module.batch_size // passes)
    elements = images * settings.model.num_ch * dataset.image_size**2
    return min(max(1, elements // ELEMENTS_PER_THREAD), available(processes))


def available(processes: Processes) -> int:
    """Threads that this process may use: OMP_NUM_THREADS, or its share of the processors."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return max(1, (os.cpu_count() or 1) // processes.local_world)
    allowed = len(os.sched_getaffinity(0))
    bound = allowed < (os.cpu_count() or 1)  # the launcher has assigned processors already
    return max(1, allowed if bound else allowed // processes.local_world)


def use_threads(settings: Settings, processes: Processes, recorded: int | None = None) -> int:
    """Compute with so many threads from here on.

    recorded: the number that a resumed run began with, which `auto` keeps.
    """
    auto = settings.train.threads == "auto"
    count = recorded if auto and recorded else number_of_threads(settings, processes)
    torch.set_num_threads(count)
    return count
