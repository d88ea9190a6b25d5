"""All that only a GPU can tell, within a given time: one command, JSON and a table.

    python -m benchmarks.gpu --minutes 9 --root /path/to/data --out gpu.json
    python -m benchmarks.gpu --device cpu --out try.json   # tries itself, on small models

Each part (benchmarks/gpu_parts.py) is a process of its own, the most telling first: one that fails,
hangs or finds no time left costs its own rows only. FILE is written anew after every part.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measure import Row, show

FOLDER = Path(__file__).resolve().parent.parent
MNIST, CIFAR = ("mnist_dct_ladder", (512, 128)), ("cifar_dct_ladder", (384, 96))
LEAST = 10.0  # seconds that a part is worth starting for


def step_parts(kind: str, precision: str, which: int) -> list[str]:
    """MNIST's and CIFAR-10's step, at the large batch (0) or the experiment's own (1)."""
    return [f"{kind}:{name}:{sizes[which]}:{precision}" for name, sizes in (MNIST, CIFAR)]


PARTS = {  # name -> seconds that it may take
    **dict.fromkeys(step_parts("step", "bf16", 0), 80),
    "curve": 80,
    "minute": 110,
    **dict.fromkeys(step_parts("step", "bf16", 1), 60),
    "rates": 60,
    "memory": 60,
    **dict.fromkeys(step_parts("compiled", "bf16", 0), 150),
    "two": 60,
    **dict.fromkeys(step_parts("step", "fp32", 0) + step_parts("step", "fp32", 1), 60),
    **dict.fromkeys(step_parts("compiled", "bf16", 1), 150),
    **dict.fromkeys(step_parts("compiled", "fp32", 0) + step_parts("compiled", "fp32", 1), 150),
}


def measured(name: str, device: str, root: str, limit: float) -> dict:
    """A part's figures by name, from a process of its own; "error" where there are none."""
    command = [sys.executable, "-m", "benchmarks.gpu_parts", name, "--device", device]
    process = subprocess.Popen(
        [*command, "--root", root],
        cwd=FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {limit:.0f} s"}
    finally:
        _end(process)
    if process.returncode:
        told = errors.strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        return {"error": told[0][:300]}
    return json.loads(output.splitlines()[-1])


def _end(process: subprocess.Popen) -> None:
    """The part's process, where it still runs, and those that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def rows(found: dict[str, dict]) -> list[Row]:
    """The table's lines: a figure each; lists (curves) are in the file only."""
    table = []
    for part, figures in found.items():
        for name, value in figures.items():
            if isinstance(value, float):
                value = f"{value:,.4g}"
            if not isinstance(value, list):
                table.append(Row(name, str(value), "", part))
    return table


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="in all")
    parser.add_argument("--root", default="data", help="the folder that holds MNIST")
    parser.add_argument("--out", default="gpu.json", type=Path, help="the JSON file to write")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try this command")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    end = time.monotonic() + 60.0 * arguments.minutes
    root, found = str(Path(arguments.root).absolute()), {}
    for name in ["machine", *arguments.only]:
        left = end - time.monotonic()
        limit = min(left, PARTS.get(name, 60))
        print(f"{left:4.0f} s left: {name}", flush=True)
        figures = {"error": "no time left"}
        if left > LEAST:
            figures = measured(name, arguments.device, root, limit)
        found[name] = figures
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    show(f"{found['machine'].get('name', arguments.device)}: {arguments.out}", rows(found))


if __name__ == "__main__":
    main()
