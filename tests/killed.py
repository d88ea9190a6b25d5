"""Runs of the command that are killed at a step: forks of one process, whose imports take seconds.

python -m tests.killed < cases.json: each case {folder, arguments, world, kill} runs in its folder,
kill naming [rank, step, seconds after the step's start], or null. Prints a line of statuses a case.
"""

import json
import os
import runpy
import signal
import socket
import sys
import time
from threading import Timer

import torch

import run_experiment  # noqa: F401  what the command imports
from datasets import digits
from tests.conftest import ROOT
from utils.trainer import Trainer

COMMAND = ROOT / "run_experiment.py"
PATIENCE = 120  # seconds for a whole run


def kill_at(step: int, delay: float) -> None:
    """SIGKILL this process so long after a training step has begun."""
    whole = Trainer._train_step

    def watched(self, passes, beta):
        if self.progress.step + 1 == step:
            Timer(delay, os.kill, [os.getpid(), signal.SIGKILL]).start()
        return whole(self, passes, beta)

    Trainer._train_step = watched


def start(folder: str, arguments: list[str], rank: int, world: int, port: int, kill: list | None):
    """Fork a process of the command, its output in a file; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.chdir(folder)
        output = os.open(f"output{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if world > 1:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
            places |= {"LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {key: str(value) for key, value in places.items()}
        if kill and kill[0] == rank:
            kill_at(*kill[1:])
        sys.argv = [str(COMMAND), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        status = end.code or 0
    finally:
        os._exit(status)


def run(case: dict) -> list[int]:
    """The exit statuses of a case's processes, and the seconds from the first's end to the last's.

    Those that are still there when that is too long are killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world, ended, first = case["world"], {}, None
    children = [
        start(case["folder"], case["arguments"], rank, world, port, case["kill"])
        for rank in range(world)
    ]
    until = time.monotonic() + PATIENCE
    while len(ended) < world:
        for child in set(children) - set(ended):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended[child] = os.waitstatus_to_exitcode(status)
                first = first or time.monotonic()
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [*(ended[child] for child in children), round(time.monotonic() - first, 1)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    digits.load()  # imports more
    for case in json.load(sys.stdin):
        print(json.dumps(run(case)), flush=True)
