"""Where a run's record goes: the interface, and the run's own folder."""

import json
import logging
from abc import ABC, abstractmethod
from pathlib import Path

from utils.files import atomic_write

log = logging.getLogger("ladder_vae")

METRICS = "metrics.jsonl"  # in a run's folder: what LocalSink writes


class Sink(ABC):
    """Where metrics and pictures go. `begin` comes first, `close` last."""

    def begin(self, rows: list[dict]) -> None:
        """Training starts, or goes on after these rows of the run's own record."""

    @abstractmethod
    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """Numbers of one epoch."""

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """PNG files just drawn."""

    def histograms(self, values: dict[str, list[float]], epoch: int, step: int) -> None:
        """Numbers whose distribution counts, by key."""

    def page(self, path: Path, epoch: int, step: int) -> None:
        """A self-contained HTML page just written."""

    def summary(self, values: dict) -> None:
        """Final results."""

    def checkpoint(self, name: str, path: Path, facts: dict) -> None:
        """A checkpoint just written: `best` or `last`, with its epoch, loss and the like."""

    def trained(self, step: int) -> None:
        """Training is over at `step`: what comes now is about the best checkpoint."""

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

    def rewind(self, epochs: int) -> None:
        """Drop what was logged after so many epochs: a continued run will log it again."""
        kept = [row for row in self.rows() if row["epoch"] <= epochs]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        atomic_write(self.path, lambda file: file.write(text.encode()))
