"""Processes of the command as forks of one that has imported what it imports, which takes seconds.

A case is {folder, arguments, environment, output, world, fault, script, peers, own}: so many
processes of the command (or a script) with these arguments run in the folder, what they print goes
to files in `output`, and `fault` names [rank or null for all, training step, what goes wrong, more]
or is null. peers: constants of utils.processes.peers to change. own: more arguments by rank.
"""

import ctypes
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import torch

from utils.processes import peers

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
            elif ended:  # one that is stopped goes on, to see that it is alone
                os.kill(child, signal.SIGCONT)
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
    for name, value in case.get("peers", {}).items():
        setattr(peers, name, value)
    fault = case.get("fault")
    if fault and fault[0] in (rank, None):
        go_wrong(*fault[1:])
    own = case.get("own", {}).get(str(rank), [])
    sys.argv = [case.get("script", str(SCRIPT)), *case["arguments"], *own]
    runpy.run_path(sys.argv[0], run_name="__main__")
    raise SystemExit  # which the command does itself


def go_wrong(step: int, what: str, *more) -> None:
    """When this training step begins."""
    from utils.training.trainer import Trainer

    whole = Trainer.train_step

    def watched(self, micro_batches, beta):
        if self.progress.step + 1 == step:
            FAULTS[what](self, *more)
        return whole(self, micro_batches, beta)

    Trainer.train_step = watched


def kill(trainer, delay: float) -> None:
    """SIGKILL, so long afterwards."""
    Timer(delay, os.kill, [os.getpid(), signal.SIGKILL]).start()


def ask(trainer, number: int) -> None:
    """A signal, to this process alone."""
    os.kill(os.getpid(), number)


def halt(trainer, *commands: str) -> None:
    """SIGSTOP, and shell commands beside it, in which {0} is the main process."""
    parent = os.getppid()
    first = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0]
    for command in commands:
        subprocess.Popen(["sh", "-c", command.format(first, own=os.getpid())])
    os.kill(os.getpid(), signal.SIGSTOP)


def ask_in_validation(trainer, number: int) -> None:
    """A signal to this process alone, within the next validation."""
    kind = type(trainer.validation)
    whole = kind.__iter__

    def batches(self):
        for index, batch in enumerate(whole(self)):
            if index == 1:
                os.kill(os.getpid(), number)
            yield batch

    kind.__iter__ = batches


def hold(trainer, seconds: int) -> None:
    """A call of C code that keeps the interpreter's lock, as some imports do."""
    ctypes.PyDLL(None).sleep(seconds)


def run_out_of_memory(trainer) -> None:
    """As a GPU says it."""
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB "
        "of which 1.20 GiB is free. Including non-PyTorch memory, this process has 77.9 GiB."
    )


def fail(trainer) -> None:
    """What nobody has thought of."""
    raise LookupError("a bug")


def spoil(trainer) -> None:
    """NaN from a layer on."""
    layer = trainer.model.get_submodule("decoder.blocks.1.z_conv")
    layer.register_forward_hook(lambda module, inputs, output: output * float("nan"))


def drift(trainer) -> None:
    """Weights that the other processes don't have."""
    with torch.no_grad():
        trainer.model.encoder.stem.bias[0] += 1e-6


def go_past(trainer) -> None:
    """The loss by the module itself instead of by what wraps it: nothing is averaged."""
    trainer.step.loss_module = trainer.step.local_module


def fill_disk(trainer) -> None:
    """No file may grow over 100 kB, as by a quota."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


STOPS = (kill, ask, ask_in_validation, halt, hold)
ERRORS = (run_out_of_memory, fail, spoil, drift, go_past, fill_disk)
FAULTS = {f.__name__: f for f in (*STOPS, *ERRORS)}


def main() -> None:
    """Import, then one case a line."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import torch._dynamo  # noqa: F401  by the first optimiser

    import run_experiment  # noqa: F401  what the command imports
    import utils.report  # noqa: F401
    from datasets import digits

    digits.load()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
