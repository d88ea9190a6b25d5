"""What a process tells the others, and learns from them; alone, it has nobody to tell."""

import os
import re
from threading import Thread
from typing import NoReturn

from utils.processes.peers import PeerFailed, PeerMonitor, Termination

CONNECTION_ERRORS = re.compile(
    "gloo|nccl|closed by peer|connection reset|broken pipe", re.IGNORECASE
)
LEAVE_TIMEOUT = 1.0  # seconds
_monitor: PeerMonitor | None = None


def begin(monitor: PeerMonitor) -> None:
    """This is the monitor of the job's processes, until `end`."""
    global _monitor
    _monitor = monitor


def end() -> Termination | None:
    """This process is done. Returns the end of the run, if it was premature."""
    global _monitor
    if _monitor is None:
        return None
    termination = _monitor.termination
    _monitor.close()
    _monitor = None
    return termination


def end_when_stuck(minutes: float) -> None:
    """From now on the run ends when another process has been silent for so long."""
    if _monitor is not None:
        _monitor.stuck_seconds = 60.0 * minutes


def ask_to_stop() -> None:
    """Let all processes know that this one was asked to stop, see `stop_asked`."""
    if _monitor is not None:
        _monitor.ask_to_stop()


def stop_asked() -> bool:
    """Whether any process has called `ask_to_stop`."""
    return _monitor is not None and _monitor.stop_asked.is_set()


def report_failure(status: int, message: str | None, error: BaseException) -> int | None:
    """Tell the other processes that this one ends prematurely, and on the main one the user.

    message: what to tell the user; None where this process was asked to stop. Returns the exit
    status, which is that of another's end that caused it; None for a process alone.
    """
    if _monitor is None:
        return None
    termination = None
    if isinstance(error, PeerFailed) or (
        isinstance(error, RuntimeError) and CONNECTION_ERRORS.search(str(error))
    ):
        termination = _monitor.wait_for_termination()
    termination = termination or _monitor.announce_failure(status, message)
    if _monitor.rank == 0:
        shared = message is not None and termination.error == message  # all processes make it
        own = Termination(0, termination.status, termination.error)
        _monitor.tell(own if shared else termination)
    return termination.status


def leave(status: int) -> NoReturn:
    """End this process at once, whatever its main thread waits for; the others end too."""
    if _monitor is not None:
        telling = Thread(target=_tell_of_leaving, args=[_monitor, status], daemon=True)
        telling.start()
        telling.join(LEAVE_TIMEOUT)  # whatever else waits, also in there
    os._exit(status)


def _tell_of_leaving(monitor: PeerMonitor, status: int) -> None:
    monitor.announce_failure(status, None)
    monitor.close()
