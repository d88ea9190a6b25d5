"""Writing checkpoints in a background thread: training waits for a copy in memory only."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from threading import Lock, Thread
from typing import Any

import torch
from torch import Tensor

from utils.terminal import one_line

CHUNK_BYTES = 2**28  # roughly what `snapshot` puts together at once on another device


def snapshot(state: Any) -> Any:
    """A copy in main memory that later training steps do not change.

    What is on another device is put together there first: the host waits for its queued work once
    for each type of number (and 256 MB), not once for each tensor.
    """
    copies = iter(_on_host(list(_tensors(state))))

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return next(copies)
        if isinstance(value, dict):
            return {key: copied(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(copied(inner) for inner in value)
        return value

    return copied(state)


def _tensors(state: Any) -> Iterator[Tensor]:
    """The tensors in dicts, lists and tuples, in order."""
    if isinstance(state, Tensor):
        yield state.detach()
    elif isinstance(state, (dict, list, tuple)):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def _on_host(tensors: list[Tensor]) -> list[Tensor]:
    """A copy of each in main memory, with its strides."""
    copies, groups, totals = [], defaultdict(list), Counter()
    for tensor in tensors:
        copies.append(torch.empty_like(tensor, device="cpu"))
        kind = tensor.device, tensor.dtype
        if tensor.device.type == "cpu":
            copies[-1].copy_(tensor)
        else:
            groups[kind, totals[kind] // CHUNK_BYTES].append((tensor, copies[-1]))
            totals[kind] += tensor.nbytes
    for pairs in groups.values():
        _copy_together(*zip(*pairs, strict=True))
    return copies


def _copy_together(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Copy tensors of one type from a device by a single transfer."""
    orders = [sorted(range(t.dim()), key=t.stride, reverse=True) for t in tensors]  # in memory
    pairs = zip(tensors, orders, strict=True)
    flat = torch.cat([tensor.permute(order).reshape(-1) for tensor, order in pairs]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    for copy, order, part in zip(copies, orders, parts, strict=True):
        target = copy.permute(order)
        target.copy_(part.view(target.shape))


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
            self._begin()

    def check(self) -> None:
        """Raise SaveFailed if a write has failed since the last call."""
        with self._lock:  # else a failure between the two could be lost
            error, self._error = self._error, None
        if error is not None:
            raise error

    def retry(self) -> None:
        """Begin to write what could not be written, if there is any."""
        with self._lock:
            self._begin()

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._work, name="checkpoints")
            self._thread.start()

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
