"""Processes of the command as forks of one that has imported what it imports, which takes seconds.

A case is {folder, arguments, environment, output, world, kill}: so many processes of the command
with these arguments run in the folder, what they print goes to files in `output`, and `kill` names
[rank, training step, seconds after that step's start] for a SIGKILL, or is null.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "run_experiment.py"
PATIENCE = 200  # seconds for a case; what is there still is killed then


class Forks:
    """The process that forks, and the cases that it is given."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )

    def run(self, **case) -> tuple[list[int], float]:
        """The statuses of a case's processes, and the seconds from its first end to its last."""
        print(json.dumps(case), file=self.process.stdin, flush=True)
        return tuple(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        """No more cases."""
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def run(case: dict) -> tuple[list[int], float]:
    """In the process that forks: `Forks.run`. A fork leaves by SystemExit."""
    world, ended, first = case.get("world", 1), {}, None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [start(case, rank, world, port) for rank in range(world)]
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
    return [ended[child] for child in children], time.monotonic() - first


def start(case: dict, rank: int, world: int, port: int) -> int:
    """Fork one process of the command; its id."""
    child = os.fork()
    if child:
        return child
    os.chdir(case["folder"])
    for stream, name in ((1, "output"), (2, "errors")):
        path = Path(case["output"], f"{name}{rank}.txt")
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(case["environment"])
    if world > 1:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in places.items()})
    kill = case.get("kill")
    if kill and kill[0] == rank:
        kill_at(*kill[1:])
    sys.argv = [str(SCRIPT), *case["arguments"]]
    runpy.run_path(sys.argv[0], run_name="__main__")
    raise SystemExit  # which the command does itself


def kill_at(step: int, delay: float) -> None:
    """SIGKILL this process so long after a training step has begun."""
    from utils.trainer import Trainer

    whole = Trainer._train_step

    def watched(self, passes, beta):
        if self.progress.step + 1 == step:
            Timer(delay, os.kill, [os.getpid(), signal.SIGKILL]).start()
        return whole(self, passes, beta)

    Trainer._train_step = watched


def main() -> None:
    """Import, then one case a line."""
    import run_experiment  # noqa: F401  what the command imports
    import utils.report  # noqa: F401
    from datasets import digits

    digits.load()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
