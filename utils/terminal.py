"""What a person sees: a progress bar, a line per epoch, a table at the end. Rank 0 only."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

log = logging.getLogger("ladder_vae")


def one_line(error: Exception) -> str:
    """What an error says, short enough to be part of a sentence."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class Bar:
    """A running progress bar."""

    def __init__(self, progress: Progress | None, task: int | None = None):
        self.progress, self.task = progress, task

    def advance(self, note: str = "", count: int = 1) -> None:
        """Move on by `count`; `note` stands behind the bar."""
        if self.progress:
            self.progress.update(self.task, advance=count, note=note)

    def count(self, done: int) -> None:
        """Move on by `done` pieces."""
        self.advance(count=done)


class Terminal:
    """Standard output of the main process; silent on the others. Lines also go to the log."""

    def __init__(self, shown: bool = True):
        self.console = Console(quiet=not shown, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """One line, as it is."""
        log.info(text)
        self.console.print(text, markup=False)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar that disappears when its block ends; none where no person looks at a terminal."""
        if not self.console.is_terminal or self.console.quiet:
            yield Bar(None)
            return
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield Bar(progress, progress.add_task(title, total=total, completed=done, note=""))

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table, also into the log as tab-separated lines."""
        table = Table(
            title=Text(title), title_justify="left", box=SIMPLE_HEAD, collapse_padding=True
        )
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        log.info("\n".join([title, "\t".join(header), *("\t".join(row) for row in rows)]))
        self.console.print(table, soft_wrap=False)
