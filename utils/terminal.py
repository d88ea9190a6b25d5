"""Output on the terminal: a progress bar, a line per epoch, tables at the end. Rank 0 only.

Names of files, runs and settings may hold anything: what is shown or logged passes `printable`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from utils.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("ladder_vae")


def printable(text: str, kept: str = "") -> str:
    """The text with its unprintable characters (but those kept) as Python writes them: \\x1b, \\n.

    Escape sequences would steer the terminal, newlines forge messages; what stands for the bytes of
    a file name that is not UTF-8 cannot be written at all.
    """
    if text.isprintable():
        return text
    shown = (c if c.isprintable() or c in kept else ascii(c)[1:-1] for c in text)
    return "".join(shown)


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

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A progress bar for the duration of the block; none unless the output is a terminal."""
        if not self.console.is_terminal or self.console.quiet:
            yield Bar(None)
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

        caption = "\n".join(printable(text) for text in (table.caption, table.note) if text)
        table = table.for_terminal()
        header = [printable(column.name) for column in table.columns]
        printed = RichTable(
            title=Text(caption), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True
        )
        for name, column in zip(header, table.columns, strict=True):
            justify = "left" if column.text else "right"
            printed.add_column(Text(name), justify=justify, overflow="fold")
        rows = [[printable(cell.text) for cell in row] for row in table.rows]
        for row in rows:
            printed.add_row(*map(Text, row))
        log.info("%s", "\n".join([caption, *("\t".join(row) for row in (header, *rows))]))
        self.console.print(printed, soft_wrap=False)
