"""The record of a run: its own folder first; W&B, TensorBoard and others mirror it."""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from torch import nn

from utils.processes.launch import Processes
from utils.settings.schema.wandb import Wandb
from utils.terminal import Terminal, one_line
from utils.tracking.sinks import METRICS, FigureTable, LocalSink, Sink
from utils.tracking.tensorboard import TensorBoardSink
from utils.tracking.wandb_sink import WandbSink

log = logging.getLogger("ladder_vae")

SinkFactory = Callable[[Path], Sink]  # builds a sink, given the run's folder


class TrackedRun(Protocol):
    """What is tracked: utils.runs.folder.RunFolder, or anything with these attributes."""

    path: Path
    name: str
    config: dict
    processes: Processes

    @property
    def wandb_id(self) -> str:
        """The run's id at W&B."""


class Tracker:
    """All sinks of a run as one; on processes that do not write, there are none."""

    def __init__(self, folder: Path, sinks: list[Sink]):
        self.folder, self.sinks = folder, sinks

    @property
    def local(self) -> LocalSink:
        """The run folder's own record."""
        return next(sink for sink in self.sinks if isinstance(sink, LocalSink))

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """Log an epoch's metrics to every sink."""
        self._each(lambda sink: sink.log(values, epoch, step))

    def begin(self, epochs: int) -> None:
        """Begin training, or resume it after so many completed epochs.

        Truncates the log to completed epochs; later rows are logged again. Epochs rather than steps
        decide, because an epoch whose steps are all done may still lack its validation.
        """
        if self.sinks:
            self.local.rewind(epochs)
            rows = self.local.rows()
            self._each(lambda sink: sink.begin(rows))

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """Send PNG files to every sink."""
        self._each(lambda sink: sink.pictures(paths, epoch, step))

    def histograms(self, values: dict[str, list[float]], epoch: int, step: int) -> None:
        """Send numbers whose distribution is of interest to every sink."""
        self._each(lambda sink: sink.histograms(values, epoch, step))

    def page(self, path: Path, epoch: int, step: int) -> None:
        """Send an HTML page to every sink."""
        self._each(lambda sink: sink.page(path, epoch, step))

    def tables(self, make: Callable[[], list[FigureTable]], epoch: int, step: int) -> None:
        """Send tables to every sink that takes any; `make` makes them then."""
        self._each(lambda sink: sink.tables(make, epoch, step))

    def summary(self, values: dict) -> None:
        """Send final results to every sink."""
        self._each(lambda sink: sink.summary(values))

    def checkpoint(self, name: str, path: Path, metadata: dict) -> None:
        """Announce a new checkpoint to every sink."""
        self._each(lambda sink: sink.checkpoint(name, path, metadata))

    def trained(self, step: int) -> None:
        """Announce the end of training to every sink."""
        self._each(lambda sink: sink.trained(step))

    def close(self, failed: bool = False) -> None:
        """Close every sink."""
        self._each(lambda sink: sink.close(failed))

    def _each(self, action: Callable[[Sink], None]) -> None:
        """Errors of the folder's own record end the run; those of a mirror are only logged."""
        for sink in self.sinks:
            try:
                action(sink)
            except Exception:
                if isinstance(sink, LocalSink):
                    raise
                log.exception("%s failed; the run goes on", type(sink).__name__)


@contextmanager
def open_tracker(
    settings: Wandb,
    run: TrackedRun,
    model: nn.Module,
    terminal: Terminal,
    factories: Collection[SinkFactory] = (),
) -> Iterator[Tracker]:
    """The sinks of a run, closed at its end; none on processes that do not write.

    settings: the wandb group. factories: further sinks, whose errors, like W&B's, never end a run.

    Raises:
        ValueError: if wandb.tensorboard is set and TensorBoard is not installed.
    """
    sinks: list[Sink] = []
    if run.processes.is_main:
        sinks.append(LocalSink(run.path / METRICS))
        if settings.tensorboard:
            sinks.append(TensorBoardSink(run.path / "tensorboard"))
        sinks += _start_wandb(settings, run, model, terminal)
        for factory in factories:
            sinks += _start_other(factory, run.path, terminal)
    tracker = Tracker(run.path, sinks)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close()


def _start_wandb(
    settings: Wandb, run: TrackedRun, model: nn.Module, terminal: Terminal
) -> list[Sink]:
    """W&B's sink in the mode of the settings; else offline, or none at all, with a message."""
    mode = settings.setup.mode
    for candidate in [] if mode == "disabled" else dict.fromkeys([mode, "offline"]):
        try:
            arguments = (run.path, run.name, run.wandb_id, run.config)
            return [WandbSink(settings, *arguments, model, candidate, terminal.line)]
        except Exception as error:
            log.exception("W&B")
            instead = "without it" if candidate == "offline" else "recording offline instead"
            terminal.line(f"W&B (mode {candidate}) could not start, {instead}: {one_line(error)}")
    return []


def _start_other(factory: SinkFactory, folder: Path, terminal: Terminal) -> list[Sink]:
    """A further sink; none, with a message, where it cannot start."""
    try:
        return [factory(folder)]
    except Exception as error:
        name = getattr(factory, "__name__", repr(factory))
        log.exception("%s", name)
        terminal.line(f"The tracker {name} could not start, the run goes on: {one_line(error)}")
        return []
