"""From the command to its first optimiser step, as a whole process, data in place.

The command runs as a user would type it, under python -X importtime; all but the imports of other
packages counts as ours: settings, images, model, the step itself.
"""

import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Row

REPEATS = 3
OURS = ("__main__", "benchmarks", "datasets", "model", "run_experiment", "utils")
IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\w+)")
FOLDER = Path(__file__).resolve().parent.parent


def first_step(arguments: list[str]) -> tuple[float, float]:
    """(seconds in all, of which importing other packages took)"""
    with tempfile.TemporaryDirectory() as runs:
        own = [f"runs_dir={runs}", "wandb.setup.mode=disabled"]
        command = [sys.executable, "-X", "importtime", "-m", "benchmarks.start", *arguments, *own]
        began = time.time()
        process = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    last = process.stdout.splitlines()[-1:]
    if process.returncode or not last or not last[0].startswith("{"):
        raise RuntimeError(f"{' '.join(command)} took no step:\n{process.stdout}{process.stderr}")
    imports = sum(int(t) for t, name in IMPORT.findall(process.stderr) if name not in OURS)
    return json.loads(last[0])["time"] - began, imports / 1e6


def rows(root: str) -> list[Row]:
    """mnist_dct_ladder from MNIST's files in `root`; the fastest of some runs."""
    if not Path(root, "MNIST", "raw").is_dir():
        return [Row("start to the first step", f"not measured: no MNIST in {root}", "< 8 s")]
    arguments = ["experiment=mnist_dct_ladder", f"dataset.root={Path(root).absolute()}"]
    total, imports = min(first_step(arguments) for _ in range(REPEATS))
    note = f"mnist_dct_ladder, fastest of {REPEATS}"
    return [
        Row("start to the first step", f"{total:.1f} s", "< 8 s", note),
        Row("  imports of other packages", f"{imports:.1f} s"),
        Row("  our own code", f"{total - imports:.1f} s", "< 2 s", "the first step included"),
    ]


def _stop_after_a_step(*_: object) -> None:
    print(json.dumps({"time": time.time()}), flush=True)
    os._exit(0)


if __name__ == "__main__":  # the command itself, cut off after its first step
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(_stop_after_a_step)
    sys.argv[0] = str(FOLDER / "run_experiment.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
