"""Being asked to stop: Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2, as schedulers send them.

Training finishes its step and saves; anything else ends where it is. The exit status says which it
was: 130 after Ctrl-C, 75 (EX_TEMPFAIL: start the same command again) after the others.
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
OWN = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)  # nobody waits for these


class Interrupted(BaseException):
    """The run was asked to stop; the same command continues it. status: the exit status."""

    def __init__(self, status: int = INTERRUPTED):
        super().__init__(status)
        self.status = status


class Signals:
    """What the signals ask while this is open. Asked twice, or `grace` seconds after being asked by
    another than Ctrl-C, the process ends at once: checkpoints are whole at any moment.

    A signal that somebody else waits for too (submitit, which then requeues the job) is handed on
    when the run has ended.
    """

    def __init__(self, grace: float):
        self.grace, self.number = grace, None
        self.asked = False  # also by another process of the run: see Trainer
        self._between_steps = False
        self._timer: Timer | None = None

    def __enter__(self) -> Self:
        self._others = {number: signal.signal(number, self._ask) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._others.items():
            signal.signal(number, handler)
        if self._timer is not None:
            self._timer.cancel()
        if self.number is not None and self._others[self.number] not in OWN:
            signal.raise_signal(self.number)

    @property
    def status(self) -> int:
        """The exit status for what was asked, here or in another process."""
        return INTERRUPTED if self.number == signal.SIGINT else PREEMPTED

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Within this block being asked sets `asked` and no more."""
        self._between_steps = True
        try:
            yield
        finally:
            self._between_steps = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            os._exit(self.status)
        self.number, self.asked = number, True
        if number != signal.SIGINT:
            self._timer = Timer(self.grace, os._exit, [PREEMPTED])
            self._timer.daemon = True
            self._timer.start()
        if not self._between_steps:
            raise Interrupted(self.status)
