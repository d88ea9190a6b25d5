"""Writing checkpoints in a background thread: training waits for a copy in memory only."""

from collections.abc import Callable
from threading import Lock, Thread
from typing import Any

import torch

from utils.terminal import one_line


def snapshot(state: Any) -> Any:
    """A copy in main memory that later training steps do not change."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: snapshot(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(snapshot(value) for value in state)
    return state


class SaveFailed(Exception):
    """A checkpoint could not be written; the message says which, and why."""


class Saver:
    """Queue of checkpoints, written in order by `write(name, state)` in a background thread.

    A newer state replaces a waiting one of the same name. After an error nothing is written until
    the next `put`, and then what failed comes first: a last checkpoint is never newer than the best
    one that its progress refers to.
    """

    def __init__(self, write: Callable[[str, dict], None]):
        self.write = write
        self._waiting: dict[str, dict] = {}  # by name, in the order to be written
        self._error: SaveFailed | None = None
        self._lock = Lock()
        self._thread: Thread | None = None

    def put(self, names: list[str], state: dict) -> None:
        """Queue a `snapshot` to be written under these names."""
        with self._lock:
            for name in names:
                self._waiting.pop(name, None)
                self._waiting[name] = state
            if self._thread is None:
                self._thread = Thread(target=self._work, name="checkpoints")
                self._thread.start()

    def check(self) -> None:
        """Raise SaveFailed if a write has failed since the last call."""
        with self._lock:  # else a failure between the two could be lost
            error, self._error = self._error, None
        if error is not None:
            raise error

    def finish(self) -> None:
        """Wait until the queue is written, and `check`."""
        thread = self._thread
        if thread is not None:
            thread.join()
        self.check()

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            name, state = entry
            try:
                self.write(name, state)
            except BaseException as error:  # whatever ends this thread is to be told
                message = f"the checkpoint {name}.pth could not be written ({_reason(error)})"
                with self._lock:
                    self._error, self._thread = SaveFailed(message), None
                return
            with self._lock:
                if self._waiting[name] is state:  # else a newer one waits
                    del self._waiting[name]

    def _next(self) -> tuple[str, dict] | None:
        with self._lock:
            if not self._waiting:
                self._thread = None
            return next(iter(self._waiting.items()), None)


def _reason(error: BaseException) -> str:
    """The operating system's error, which one raised while closing the file may have replaced."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return one_line(cause or error)
