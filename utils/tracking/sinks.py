"""Sinks for metrics: the interface, and the log in the run's own folder."""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.files import atomic_write, explained, no_follow, read_text

log = logging.getLogger("ladder_vae")

METRICS = "metrics.jsonl"  # LocalSink's file in a run's folder


@dataclass(frozen=True)
class FigureTable:
    """Figures to sort and filter; a cell may be a picture, (H, W) or (H, W, 3) uint8."""

    name: str  # letters, digits, hyphens and underscores
    columns: list[str]
    rows: list[list[float | str | np.ndarray | None]]

    @classmethod
    def of(cls, name: str, rows: list[dict]) -> "FigureTable":
        """From rows by column; all have the same columns."""
        return cls(name, list(rows[0]), [list(row.values()) for row in rows])


class Sink(ABC):
    """Receives a run's metrics and pictures. `begin` is called first, `close` last.

    A tracker of another service is one subclass; only `log` has to be defined.
    """

    def begin(self, rows: list[dict]) -> None:
        """Training starts, or resumes after these rows of the run's own log."""

    @abstractmethod
    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """The metrics of one epoch."""

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """New PNG files."""

    def histograms(self, values: dict[str, list[float]], epoch: int, step: int) -> None:
        """Numbers whose distribution is of interest, by key."""

    def page(self, path: Path, epoch: int, step: int) -> None:
        """A new, self-contained HTML page."""

    def tables(self, make: Callable[[], list[FigureTable]], epoch: int, step: int) -> None:
        """Tables, the last that is sent; `make` makes them, which takes a second."""

    def summary(self, values: dict) -> None:
        """Final results."""

    def checkpoint(self, name: str, path: Path, metadata: dict) -> None:
        """A new checkpoint, `best` or `last`; metadata: its epoch, step, metric and format."""

    def trained(self, step: int) -> None:
        """Training ended at `step`; what follows concerns the best checkpoint."""

    def close(self, failed: bool) -> None:
        """The run has ended. failed: with an error, or interrupted."""


class LocalSink(Sink):
    """metrics.jsonl: one JSON object per line."""

    def __init__(self, path: Path):
        self.path = path

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """Append a line.

        Raises:
            OSError: one sentence, if it cannot be written.
        """
        line = json.dumps({"epoch": epoch, "step": step, **values}) + "\n"
        with (
            explained(self.path),
            open(self.path, "a", encoding="utf-8", opener=no_follow) as file,
        ):
            file.write(line)

    def rows(self) -> list[dict]:
        """All rows so far; a line that is none, as one cut short, is skipped with a warning."""
        if not self.path.exists():
            return []
        rows = []
        for line in read_text(self.path, errors="replace").splitlines():
            row = _row(line)
            if row is None:
                log.warning("%s has a line cut short, left out: %s", self.path, line[:40])
            else:
                rows.append(row)
        return rows

    def rewind(self, epochs: int) -> None:
        """Truncates the log to completed epochs; later rows are logged again."""
        kept = [row for row in self.rows() if row["epoch"] <= epochs]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        atomic_write(self.path, lambda file: file.write(text.encode()))


def _row(line: str) -> dict | None:
    """The row in a line of the log; None where it holds something else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and type(row.get("epoch")) is type(row.get("step")) is int
    return row if whole else None
