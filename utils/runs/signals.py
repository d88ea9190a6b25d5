"""Stop signals: Ctrl-C, and SIGTERM, SIGUSR1 and SIGUSR2 as schedulers send them.

Training finishes its step and saves a checkpoint; anything else is interrupted at once. The exit
status is 130 after Ctrl-C, and 75 (EX_TEMPFAIL: start the same command again) after the others.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from types import FrameType
from typing import Self

INTERRUPTED, PREEMPTED = 130, 75
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# Handlers that Python installs by itself; any other belongs to somebody who waits for the signal.
DEFAULT_HANDLERS = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)


class Interrupted(BaseException):
    """A signal stopped the run; the same command continues it. status: the exit status."""

    def __init__(self, status: int = INTERRUPTED):
        super().__init__(status)
        self.status = status


class Signals:
    """Handles the stop signals within its block.

    After a second signal, or `grace` seconds after one other than Ctrl-C, the process exits at
    once, which is safe: checkpoints are complete files at any moment. A signal for which a handler
    was installed before (by submitit, which then requeues the job) is passed on to it at the end.
    """

    def __init__(self, grace: float):
        self.grace, self.number = grace, None
        self.stop_requested = False  # of this process; the Trainer asks the others' too
        self._interrupting = True  # whether a signal raises Interrupted where it arrives
        self._timer: Timer | None = None

    def __enter__(self) -> Self:
        self._previous_handlers = {
            number: signal.signal(number, self._handle) for number in SIGNALS
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()
        if self.number is not None and self._previous_handlers[self.number] not in DEFAULT_HANDLERS:
            signal.raise_signal(self.number)

    @property
    def status(self) -> int:
        """The exit status for the signal, received here or by another process."""
        return INTERRUPTED if self.number == signal.SIGINT else PREEMPTED

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within this block a signal only sets `stop_requested`, to be read between steps."""
        self._interrupting = False
        try:
            yield
        finally:
            self._interrupting = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(self.status)
        self.number, self.stop_requested = number, True
        if number != signal.SIGINT:
            self._timer = Timer(self.grace, os._exit, [PREEMPTED])
            self._timer.daemon = True
            self._timer.start()
        if self._interrupting:
            raise Interrupted(self.status)
