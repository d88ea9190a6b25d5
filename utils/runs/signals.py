"""Stop signals: Ctrl-C, and SIGTERM, SIGUSR1 and SIGUSR2 as schedulers send them.

Training finishes its step and saves a checkpoint; anything else is interrupted at once. The exit
status is 130 after Ctrl-C, and 75 (EX_TEMPFAIL: start the same command again) after the others.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread, Timer
from types import FrameType
from typing import Self

from utils.processes import watch

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

    After a second signal, or `grace` seconds after one, the process exits at once, which is safe:
    checkpoints are complete files at any moment. A process alone takes its time after Ctrl-C;
    `several` may wait for one another for ever. A signal for which a handler was installed before
    (by submitit, which then requeues the job) is passed on to it at the end.
    """

    def __init__(self, grace: float, several: bool = False):
        self.number: int | None = None
        self.stop_requested = False  # of this process; the Trainer asks the others' too
        self._interrupting = True  # whether a signal raises Interrupted where it arrives
        unlimited = {} if several else {signal.SIGINT: None}
        self._deadline = Deadline({**dict.fromkeys(SIGNALS, grace), **unlimited})

    def __enter__(self) -> Self:
        self._previous_handlers = {
            number: signal.signal(number, self._handle) for number in SIGNALS
        }
        self._deadline.begin()
        return self

    def __exit__(self, *exception: object) -> None:
        self._deadline.end()
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        if self.number is not None and self._previous_handlers[self.number] not in DEFAULT_HANDLERS:
            signal.raise_signal(self.number)

    @property
    def status(self) -> int:
        """The exit status for the signal, received here or by another process."""
        return _status(self.number)

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within this block a signal only sets `stop_requested`, to be read between steps."""
        self._interrupting = False
        try:
            yield
        finally:
            self._interrupting = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number, self.stop_requested = self.number or number, True
        if self._interrupting:
            raise Interrupted(self.status)


class Deadline:
    """Ends the process at the second stop signal, or so many seconds after the first.

    Python's own handlers run only when the main thread returns from C code, which may be a
    collective operation that waits for another process. So a thread reads which signals arrive
    from a file descriptor (signal.set_wakeup_fd), to which the C handler writes at once.

    grace: seconds by signal, of those that have a handler; None: the second one alone ends it.
    """

    def __init__(self, grace: dict[int, float | None]):
        self.grace = grace
        self._first: int | None = None
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Begin to read; to be called by the main thread."""
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._previous = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._thread = Thread(target=self._read, args=[reader], daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The process may go on; to be called by the main thread."""
        signal.set_wakeup_fd(self._previous)
        os.close(self._writer)
        self._thread.join()  # it may be about to set the timer
        if self._timer is not None:
            self._timer.cancel()

    def _read(self, reader: int) -> None:
        with open(reader, "rb", buffering=0) as numbers:
            while number := numbers.read(1):
                if number[0] in self.grace:
                    self._received(number[0])

    def _received(self, number: int) -> None:
        if self._first is not None:
            watch.leave(_status(self._first))
        self._first = number
        if self.grace[number] is not None:
            self._timer = Timer(self.grace[number], watch.leave, [_status(number)])
            self._timer.daemon = True
            self._timer.start()


@contextmanager
def interruptible(grace: float) -> Iterator[None]:
    """Within this block Ctrl-C ends the process within `grace` seconds, and twice at once."""
    deadline = Deadline({signal.SIGINT: grace})
    deadline.begin()
    try:
        yield
    finally:
        deadline.end()


def _status(number: int | None) -> int:
    return INTERRUPTED if number == signal.SIGINT else PREEMPTED
