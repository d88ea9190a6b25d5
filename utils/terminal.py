"""Output on the terminal: a progress bar, a line per epoch, tables at the end. Rank 0 only."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from utils.table import Table

if TYPE_CHECKING:
    from rich.progress import Progress

log = logging.getLogger("ladder_vae")


def one_line(error: Exception) -> str:
    """An error's message in one line of at most 200 characters, to be quoted within a sentence."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class Bar:
    """A progress bar that is shown, or one that does nothing where no bar is shown."""

    def __init__(self, progress: "Progress | None", task: int | None = None):
        self.progress, self.task = progress, task

    def advance(self, note: str = "", count: int = 1) -> None:
        """Advance by `count` steps; `note` is shown behind the bar."""
        if self.progress:
            self.progress.update(self.task, advance=count, note=note)

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
        log.info(text)
        self.console.print(text, markup=False)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A progress bar for the duration of the block; none unless the output is a terminal."""
        if not self.console.is_terminal or self.console.quiet:
            yield Bar(None)
            return
        from rich import progress as parts

        columns = [
            parts.TextColumn("{task.description}"),
            parts.BarColumn(),
            parts.MofNCompleteColumn(),
            parts.TextColumn("{task.fields[note]}"),
            parts.TextColumn("left"),
            parts.TimeRemainingColumn(),
        ]
        with parts.Progress(*columns, console=self.console, transient=True) as progress:
            yield Bar(progress, progress.add_task(title, total=total, completed=done, note=""))

    def table(self, table: Table) -> None:
        """Print a table, and write it to the log as tab-separated lines."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        table = table.for_terminal()
        printed = RichTable(
            title=Text(table.caption), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True
        )
        for column in table.columns:
            justify = "left" if column.text else "right"
            printed.add_column(column.name, justify=justify, overflow="fold")
        rows = [[cell.text for cell in row] for row in table.rows]
        for row in rows:
            printed.add_row(*row)
        header = [column.name for column in table.columns]
        log.info("\n".join([table.caption, *("\t".join(row) for row in (header, *rows))]))
        self.console.print(printed, soft_wrap=False)
