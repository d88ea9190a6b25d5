"""One command: Hydra composes, a task runs, and mistakes are told in one sentence."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from utils.processes import launch
from utils.processes.launch import Processes
from utils.processes.peers import INTERRUPTED_MESSAGE
from utils.runs.signals import INTERRUPTED, Interrupted
from utils.settings.command_line import Command, quote_texts, take_secrets
from utils.settings.composition import explain
from utils.terminal import LogFormatter, printable
from utils.training.memory import disable_malloc_trim
from utils.training.stopping import TrainingStopped

USER_ERRORS = (ValueError, TrainingStopped, OSError, OmegaConfBaseException)  # told in a sentence
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
    processes = launch.start(composed.train.ddp)
    try:
        tasks[command.composed.task.name](command, processes)
    except BaseException as error:
        status, told = getattr(error, "status", 1), None
        if not isinstance(error, (Interrupted, KeyboardInterrupt)):
            known = isinstance(error, USER_ERRORS)
            told = _sentence(error) if known else printable(traceback.format_exc(), kept="\n")
        end = launch.report_failure(status, told, error)
        if end is None:
            raise
        if processes.is_main:
            print(end.message, file=sys.stderr)
        sys.exit(end.status)
    finally:
        launch.stop()


def _sentence(error: Exception) -> str:
    """What a person can mend."""
    return printable(str(explain(error) if isinstance(error, OmegaConfBaseException) else error))


def run_command(job: Callable[[], object]) -> int:
    """Let Hydra compose and run the jobs; the command's exit status."""
    global _running
    _running = Running(os.getpid(), os.environ.get("HYDRA_FULL_ERROR") == "1")
    take_secrets(sys.argv)
    quote_texts(sys.argv)
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
    return 1 if _running.failed else 0
