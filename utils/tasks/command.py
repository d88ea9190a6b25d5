"""One command: Hydra composes, a task runs, and mistakes are told in one sentence."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from utils.errors import ConfigError
from utils.processes import launch, watch
from utils.processes.collectives import check_same
from utils.processes.devices import pick_device
from utils.processes.launch import Processes
from utils.processes.peers import INTERRUPTED_MESSAGE
from utils.processes.ranks import launcher
from utils.runs.signals import INTERRUPTED, Interrupted, interruptible
from utils.settings.command_line import Command, take_secrets
from utils.settings.composition import explain
from utils.settings.typed import check_words
from utils.streams import never_fail
from utils.terminal import LogFormatter, printable
from utils.training.memory import disable_malloc_trim
from utils.training.stopping import TrainingStopped

# Told in a sentence:
USER_ERRORS = (
    ValueError,
    TrainingStopped,
    OSError,
    OmegaConfBaseException,
    torch.OutOfMemoryError,
)
Task = Callable[[Command, Processes], None]


@dataclass
class Running:
    """The command that this process runs; a job that a launcher runs elsewhere has none."""

    process: int | None = None
    show_traceback: bool = False
    failed: bool = False  # whether a job of it ended with an error

    @property
    def tells(self) -> bool:
        """Whether a person reads here; else whoever started the job must see it fail."""
        return self.process == os.getpid() and not self.show_traceback


_running = Running()


def run_job(composed: DictConfig, tasks: Mapping[str, Task]) -> None:
    """One job: what task.name says. A sweep's jobs go on after one that failed."""
    try:
        _run_task(composed, tasks)
    except (Interrupted, KeyboardInterrupt) as asked:
        print(INTERRUPTED_MESSAGE, file=sys.stderr)
        sys.exit(getattr(asked, "status", INTERRUPTED))
    except USER_ERRORS as error:
        if not _running.tells:
            raise
        print(f"Error: {_sentence(error)}", file=sys.stderr)
        _running.failed = True


def _run_task(composed: DictConfig, tasks: Mapping[str, Task]) -> None:
    """The task, in all processes; what ends one of them ends all."""
    command = Command.running(composed)
    grace = command.value("train.grace_seconds")
    with interruptible(grace) if launcher() != "none" else nullcontext():
        _run_with_others(command, tasks[command.composed.task.name])


def _run_with_others(command: Command, task: Task) -> None:
    processes = launch.start(command.composed.train.ddp)
    try:
        if processes.world > 1:
            _connect(command, processes)
        task(command, processes)
    except BaseException as error:
        status, told = getattr(error, "status", 1), None
        if isinstance(error, KeyboardInterrupt):
            status = INTERRUPTED
        elif not isinstance(error, Interrupted):
            known = isinstance(error, USER_ERRORS)
            told = _sentence(error) if known else printable(traceback.format_exc(), kept="\n")
        ended = watch.report_failure(status, told, error)
        if ended is None:
            raise
        sys.exit(ended)
    finally:
        launch.stop()


def _connect(command: Command, processes: Processes) -> None:
    """Make several processes one group, of the same command."""
    watch.end_when_stuck(command.value("train.stuck_minutes"))
    launch.join(processes, pick_device(command.value("train.device"), processes))
    check_same(command.shared)


def _sentence(error: Exception) -> str:
    """What a person can mend."""
    if isinstance(error, torch.OutOfMemoryError):
        what = ". ".join(str(error).split(". ")[:2]).rstrip(".")  # of torch's page about it
        return (
            f"{what}: to train in less, lower dataset.data_module.batch_size, raise train.acc_grad "
            "or set train.checkpoint_activations=true; to evaluate, lower "
            "dataset.data_module.test_batch_size."
        )
    return printable(str(explain(error) if isinstance(error, OmegaConfBaseException) else error))


def run_command(job: Callable[[], object]) -> int:
    """Let Hydra compose and run the jobs; the command's exit status."""
    global _running
    never_fail()
    _running = Running(os.getpid(), os.environ.get("HYDRA_FULL_ERROR") == "1")
    try:
        take_secrets(sys.argv)
        words = sys.argv[1:]
        check_words(words)
    except ConfigError as error:
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        return 1
    sys.argv[1:] = words
    disable_malloc_trim()
    logging.lastResort.setFormatter(LogFormatter())  # what no run's log takes goes to the terminal
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors of its own making and exits
    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        if _running.show_traceback:
            raise
        print(f"Error: {printable(str(explain(error)))}", file=sys.stderr)
        return 1
    except OSError as error:  # Hydra's, about the folder of a sweep; a job's own are told by it
        if _running.show_traceback:
            raise
        message = f"runs_dir cannot be written to ({error}): allow it, or set another one."
        print(f"Error: {printable(message)}", file=sys.stderr)
        return 1
    return 1 if _running.failed else 0
