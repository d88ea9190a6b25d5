"""The record of a run: its own folder first, W&B as a mirror."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from utils.terminal import Terminal, one_line
from utils.tracking.sinks import METRICS, LocalSink, Sink
from utils.tracking.tensorboard import TensorBoardSink
from utils.tracking.wandb_client import WandbSink

log = logging.getLogger("ladder_vae")


class Tracker:
    """All sinks of a run as one; none but the folder's name on processes that don't write."""

    def __init__(self, folder: Path, sinks: list[Sink]):
        self.folder, self.sinks = folder, sinks

    @property
    def local(self) -> LocalSink:
        """The folder's own record."""
        return next(sink for sink in self.sinks if isinstance(sink, LocalSink))

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """Numbers of one epoch, to every sink."""
        self._each(lambda sink: sink.log(values, epoch, step))

    def begin(self, epochs: int) -> None:
        """Training starts or goes on after so many epochs: what the record has beyond comes again.

        Not by steps: of an epoch whose steps are all done the validation may still be to do.
        """
        if self.sinks:
            self.local.rewind(epochs)
            rows = self.local.rows()
            self._each(lambda sink: sink.begin(rows))

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """PNG files just drawn, to every sink."""
        self._each(lambda sink: sink.pictures(paths, epoch, step))

    def histograms(self, values: dict[str, list[float]], epoch: int, step: int) -> None:
        """Numbers whose distribution counts, to every sink."""
        self._each(lambda sink: sink.histograms(values, epoch, step))

    def page(self, path: Path, epoch: int, step: int) -> None:
        """An HTML page just written, to every sink."""
        self._each(lambda sink: sink.page(path, epoch, step))

    def summary(self, values: dict) -> None:
        """Final results, to every sink."""
        self._each(lambda sink: sink.summary(values))

    def checkpoint(self, name: str, path: Path, facts: dict) -> None:
        """A checkpoint just written, to every sink."""
        self._each(lambda sink: sink.checkpoint(name, path, facts))

    def trained(self, step: int) -> None:
        """Training is over, to every sink."""
        self._each(lambda sink: sink.trained(step))

    def close(self, failed: bool = False) -> None:
        """Nothing more will come."""
        self._each(lambda sink: sink.close(failed))

    def _each(self, action: Callable[[Sink], None]) -> None:
        """The folder's own record must work; trouble with a mirror must not end a run."""
        for sink in self.sinks:
            try:
                action(sink)
            except Exception:
                if isinstance(sink, LocalSink):
                    raise
                log.exception("%s failed; the run goes on", type(sink).__name__)


@contextmanager
def open_tracker(
    settings: dict, folder: Any, model: nn.Module, terminal: Terminal
) -> Iterator[Tracker]:
    """The sinks of a run, closed at its end; none on processes that don't write.

    settings: the wandb group. Where W&B cannot start it records offline, and without it at worst.
    """
    sinks: list[Sink] = []
    if folder.processes.is_main:
        sinks.append(LocalSink(folder.path / METRICS))
        if settings["tensorboard"]:
            sinks.append(TensorBoardSink(folder.path / "tensorboard"))
        mode = settings["setup"]["mode"]
        for wanted in [] if mode == "disabled" else dict.fromkeys([mode, "offline"]):
            try:
                run = (folder.path, folder.name, folder.wandb_id, folder.config)
                sinks.append(WandbSink(settings, *run, model, wanted, terminal.line))
                break
            except Exception as error:
                log.exception("W&B")
                instead = "without it" if wanted == "offline" else "recording offline instead"
                terminal.line(f"W&B (mode {wanted}) could not start, {instead}: {one_line(error)}")
    tracker = Tracker(folder.path, sinks)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close()
