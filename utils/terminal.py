"""Output on the terminal: a progress bar, a line per epoch, tables at the end. Rank 0 only.

Names of files, runs and settings may hold anything: what is shown or logged passes `printable`.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from utils.table import Table, fitting

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("ladder_vae")
SECONDS_BETWEEN_LINES = 10.0  # of progress, where no bar can be shown


def printable(text: str, kept: str = "") -> str:
    """The text with its unprintable characters (but those kept) as Python writes them: \\x1b, \\n.

    Escape sequences would steer the terminal, newlines forge messages; what stands for the bytes of
    a file name that is not UTF-8 cannot be written at all.
    """
    if text.isprintable():
        return text
    shown = (c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)
    return "".join(shown)


def shown(value: object) -> str:
    """A plain value out of a file, for messages; of a container its type, for it may be endless."""
    plain = value is None or isinstance(value, (str, bytes, bool, int, float))
    return f"{value!r:.60}" if plain else f"a {type(value).__name__}"


def one_line(error: Exception) -> str:
    """An error's message in one line of at most 200 characters, to be quoted within a sentence."""
    return printable(" ".join(str(error).split()))[:200] or type(error).__name__


class LogFormatter(logging.Formatter):
    """Log records in printable text; tables and tracebacks keep their lines."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's text."""
        return printable(super().format(record), kept="\n\t")


class Bar:
    """A progress bar that is shown, or one that does nothing where no bar is shown."""

    def __init__(self, progress: "Progress | None", task: int | None = None):
        self.progress, self.task = progress, task

    def advance(self, note: str = "", count: int = 1) -> None:
        """Advance by `count` steps; `note` is shown behind the bar."""
        if self.progress:
            self.progress.update(self.task, advance=count, note=printable(note))

    def count(self, done: int) -> None:
        """Advance by `done` steps, as a callback with one argument."""
        self.advance(count=done)


class Lines(Bar):
    """A line of progress every so many seconds, for output that is no terminal."""

    def __init__(self, terminal: "Terminal", title: str, total: int, done: int, every: float):
        self.terminal, self.title, self.total, self.every = terminal, title, total, every
        self.first = self.done = done
        self.began = self.last = time.monotonic()

    def advance(self, note: str = "", count: int = 1) -> None:
        """Advance by `count` steps; `note` stands at the end of the line."""
        self.done += count
        now = time.monotonic()
        if now - self.last < self.every or self.done >= self.total:
            return
        self.last = now
        left = (now - self.began) / (self.done - self.first) * (self.total - self.done)
        text = f"{self.title}: {self.done:,} of {self.total:,}, {duration(left)} left"
        self.terminal.line(f"{text}, {note}" if note else text)


def duration(seconds: float) -> str:
    """In words, to two figures at the most: 40 s, 12 min, 3.5 h, 12 days."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * length:
            count = seconds / length
            return f"{count:.1f} {unit}" if count < 10 else f"{count:.0f} {unit}"
    return f"{seconds:.0f} s"


class Terminal:
    """Standard output of the main process; silent on the others. Lines also go to the log."""

    def __init__(self, shown: bool = True):
        from rich.console import Console  # not at every start

        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """Print one line without markup, and log it."""
        text = printable(text)
        log.info("%s", text)
        self.console.print(text, markup=False)

    def fields(self, parts: Sequence[tuple[str, int]]) -> None:
        """Print one line of (text, drop), and log it whole.

        What a terminal's width has no room for is left out, drop 1 first; 0 always stays.
        """
        width = self.console.width if self.console.is_terminal else 10**6
        kept = fitting(parts, lambda part: part[1], lambda some: len(_joined(some)) <= width)
        log.info("%s", _joined(parts))
        self.console.print(_joined(kept), markup=False)

    @contextmanager
    def bar(
        self, title: str, total: int, done: int = 0, every: float = SECONDS_BETWEEN_LINES
    ) -> Iterator[Bar]:
        """A progress bar for the duration of the block.

        Where the output is no terminal, a line every so many seconds.
        """
        if self.console.quiet:
            yield Bar(None)
            return
        if not self.console.is_terminal:
            yield Lines(self, title, total, done, every)
            return
        from rich import progress as parts

        columns = [
            parts.TextColumn("{task.description}", markup=False),
            parts.BarColumn(),
            parts.MofNCompleteColumn(),
            parts.TextColumn("{task.fields[note]}", markup=False),
            parts.TextColumn("left"),
            parts.TimeRemainingColumn(),
        ]
        with parts.Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(printable(title), total=total, completed=done, note="")
            yield Bar(progress, task)

    def table(self, table: Table) -> None:
        """Print a table, and write it to the log as tab-separated lines."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        lines = [table.caption, *table.note.splitlines()]
        caption = "\n".join(printable(text) for text in lines if text)
        log.info("%s", "\n".join([caption, *map("\t".join, _texts(table.for_terminal(10**6)))]))
        table = table.for_terminal(self.console.width)
        printed = RichTable(
            title=Text(caption), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True
        )
        header, *rows = _texts(table)
        for name, column in zip(header, table.columns, strict=True):
            justify = "left" if column.text else "right"
            printed.add_column(Text(name), justify=justify, overflow="fold")
        for row in rows:
            printed.add_row(*map(Text, row))
        self.console.print(printed, soft_wrap=False)


def _joined(parts: Sequence[tuple[str, int]]) -> str:
    return printable("  ".join(text for text, _ in parts))


def _texts(table: Table) -> list[list[str]]:
    """What it shows: the columns' names, then the cells of each row."""
    rows = [[cell.text for cell in row] for row in table.rows]
    return [list(map(printable, row)) for row in ([c.name for c in table.columns], *rows)]
