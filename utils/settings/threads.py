"""How many threads compute: a function of the model's size, so that a command's results repeat.

Rounding differs between numbers of threads. So `train.threads: auto` looks at the settings and at
the processors that there are, never at what else they are doing.
"""

import os

import torch

from utils.processes.launch import Processes
from utils.settings.schema import Settings

ELEMENTS = 800_000  # of the largest map, for each thread: with fewer, threads mostly wait


def number_of_threads(settings: Settings, processes: Processes) -> int:
    """train.threads; where it is auto, a thread for every 800,000 elements of the largest map.

    That is the map of a pass's images at full resolution: 205,000 elements for the digits (one
    thread), 3.2 million for MNIST (four), 149 million for CIFAR-10.
    """
    wanted, dataset = settings.train.threads, settings.dataset
    if wanted != "auto":
        return wanted
    passes = processes.world * settings.train.acc_grad
    images = -(-dataset.data_module.batch_size // passes)
    elements = images * settings.model.num_ch * dataset.image_size**2
    return min(max(1, elements // ELEMENTS), available(processes))


def available(processes: Processes) -> int:
    """Threads that this process may have: OMP_NUM_THREADS, else its share of the processors."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    if not hasattr(os, "sched_getaffinity"):  # not Linux
        return max(1, (os.cpu_count() or 1) // processes.local_world)
    own = len(os.sched_getaffinity(0))
    bound = own < (os.cpu_count() or 1)  # the launcher has divided them
    return max(1, own if bound else own // processes.local_world)


def use_threads(settings: Settings, processes: Processes, recorded: int | None = None) -> int:
    """Compute with so many threads from here on.

    recorded: the number that a run began with, which `auto` keeps.
    """
    auto = settings.train.threads == "auto"
    count = recorded if auto and recorded else number_of_threads(settings, processes)
    torch.set_num_threads(count)
    return count
