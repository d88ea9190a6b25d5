"""Speed and memory: step, loader, evaluation, sampling, start; one table.

    python -m benchmarks
    python -m benchmarks --root /path/to/data          # where MNIST is, for the start
    python -m benchmarks experiment=digits_ladder --only step inference
    python -m benchmarks --device cuda

Shares are of this machine's own rates, measured in the same run. `python -m benchmarks.saving`
and `python -m benchmarks.several` measure checkpoints and several processes.
"""

import utils.processes.openmp  # noqa: F401  before anything that loads OpenMP

# isort: split
import argparse

import torch

from benchmarks import inference, memory, start, step
from benchmarks.measure import show
from utils.terminal import Terminal

PARTS = ("step", "inference", "start", "gpu", "memory")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--root", default="data", help="the folder that holds MNIST")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    arguments, overrides = parser.parse_known_args()
    overrides = overrides or ["experiment=mnist_dct_ladder"]
    device, terminal = torch.device(arguments.device), Terminal()
    parts = {
        "step": lambda: step.rows(overrides, device),
        "inference": lambda: inference.rows(overrides, device),
        "start": lambda: start.rows(arguments.root),
        "gpu": lambda: step.gpu_rows(device),
        "memory": lambda: memory.rows(device),
    }
    rows = []
    for part in arguments.only:
        terminal.line(f"measuring: {part}")
        rows += parts[part]()
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    threads = torch.get_num_threads()
    show(f"On {machine}, {threads} threads, PyTorch {torch.__version__}", rows)


if __name__ == "__main__":
    main()
