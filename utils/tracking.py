"""The record of a run: its own folder first, W&B as a mirror. The only module that calls W&B."""

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from utils.files import atomic_write
from utils.runs import RunFolder
from utils.terminal import Terminal

log = logging.getLogger("ladder_vae")
INIT_TIMEOUT = 20  # seconds for the W&B server to answer
FINISH_TIMEOUT = 60


class Sink(ABC):
    """Where metrics and pictures go."""

    @abstractmethod
    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """Numbers of one epoch."""

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """PNG files just drawn."""

    def summary(self, values: dict) -> None:
        """Final results."""

    def close(self, failed: bool) -> None:
        """Nothing more will come."""


class LocalSink(Sink):
    """metrics.jsonl: one JSON object per line."""

    def __init__(self, path: Path):
        self.path = path

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """Append a line."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, "step": step, **values}) + "\n")

    def rows(self) -> list[dict]:
        """All lines so far; one that a crash cut short does not count."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                log.warning("%s has a line cut short, left out: %s", self.path, line[:40])
        return rows

    def rewind(self, step: int) -> None:
        """Drop what was logged after `step`: a continued run will log it again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        atomic_write(self.path, lambda file: file.write(text.encode()))


class WandbSink(Sink):
    """A W&B run through the real client."""

    def __init__(self, settings: dict, folder: RunFolder, model: nn.Module, mode: str):
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_X_DISABLE_VIEWER", "true")
        import wandb  # takes a second: only where it is used

        if settings["api_key"]:
            os.environ["WANDB_API_KEY"] = settings["api_key"]
        self.wandb, setup = wandb, settings["setup"]
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
        wandb.teardown()  # a run that could not start leaves the client unable to start another
        self.run = wandb.init(
            entity=setup["entity"],
            project=setup["project"],
            group=settings["group"] or folder.config["name"],
            name=folder.name,
            id=folder.wandb_id,
            resume="allow",
            mode=mode,
            dir=str(folder.path),
            config=folder.config,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
            ),
        )
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")
        self.run.define_metric("val/loss", step_metric="epoch", summary="min")
        if settings["watch"]:
            self.run.watch(model)
        log.info("W&B run %s, %s", folder.wandb_id, mode)

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """A row with epoch and step as columns."""
        self.run.log({"epoch": epoch, "step": step, **values})

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """Pictures as figures/<name>."""
        images = {f"figures/{path.stem}": self.wandb.Image(str(path)) for path in paths}
        self.run.log({"epoch": epoch, "step": step, **images})

    def summary(self, values: dict) -> None:
        """The run's summary."""
        self.run.summary.update(values)

    def close(self, failed: bool) -> None:
        """Finish the run."""
        self.run.finish(exit_code=int(failed))


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

    def rewind(self, step: int) -> None:
        """Before going on at `step`: forget what the folder's record has after it."""
        for sink in self.sinks:
            if isinstance(sink, LocalSink):
                sink.rewind(step)

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """PNG files just drawn, to every sink."""
        self._each(lambda sink: sink.pictures(paths, epoch, step))

    def summary(self, values: dict) -> None:
        """Final results, to every sink."""
        self._each(lambda sink: sink.summary(values))

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
    settings: dict, folder: RunFolder, model: nn.Module, terminal: Terminal
) -> Iterator[Tracker]:
    """The sinks of a run, closed at its end; none on processes that don't write.

    settings: the wandb group. Where W&B cannot start it records offline, and without it at worst.
    """
    sinks: list[Sink] = []
    if folder.processes.is_main:
        sinks.append(LocalSink(folder.path / "metrics.jsonl"))
        mode = settings["setup"]["mode"]
        for wanted in [] if mode == "disabled" else dict.fromkeys([mode, "offline"]):
            try:
                sinks.append(WandbSink(settings, folder, model, wanted))
                break
            except Exception as error:
                log.exception("W&B")
                reason = " ".join(str(error).split())[:150]
                terminal.line(f"W&B (mode {wanted}) could not start: {reason}")
    tracker = Tracker(folder.path, sinks)
    try:
        yield tracker
    except BaseException:
        tracker.close(failed=True)
        raise
    tracker.close()
