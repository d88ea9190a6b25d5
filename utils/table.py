"""A table as data: made once, printed on the terminal and set into a page from the same object."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Cell:
    """The text that a table shows, and the number that a page sorts it by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Column:
    """A column's heading and what its figures mean.

    text: words, aligned to the left; numbers are aligned to the right. page_only: a detail that the
    terminal leaves out. drop: of a terminal that is too narrow for all, which go first: 1, 2, …; 0
    always stays. unit: of the figures, where the name doesn't say it; for pages.
    """

    name: str
    explanation: str = ""
    text: bool = False
    page_only: bool = False
    drop: int = 0
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """Rows with one cell per column.

    note: a second line of the caption on the terminal; a page says it in its text. folded: closed
    on a page until it is clicked.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    folded: bool = False

    def for_terminal(self, width: int) -> "Table":
        """This table without the columns that only a page shows, and what `width` has no room for.

        width: in characters.
        """
        shown = [index for index, column in enumerate(self.columns) if not column.page_only]
        kept = fitting(shown, lambda i: self.columns[i].drop, lambda k: self._width(k) <= width)
        return replace(
            self,
            columns=[self.columns[index] for index in kept],
            rows=[[row[index] for index in kept] for row in self.rows],
        )

    def _width(self, kept: Sequence[int]) -> int:
        """Of these columns on the terminal: the longest text of each, two spaces around."""
        cells = [[self.columns[i].name, *(row[i].text for row in self.rows)] for i in kept]
        return sum(max(map(len, texts)) for texts in cells) + 2 * (len(kept) + 1)


def fitting(
    items: Sequence[Item], drop: Callable[[Item], int], fits: Callable[[Sequence[Item]], bool]
) -> list[Item]:
    """The items without those that have to go until the rest fits: drop 1 first; 0 always stays."""
    kept = list(items)
    for item in sorted(items, key=drop):
        if drop(item) and not fits(kept):
            kept.remove(item)
    return kept


def integer(value: int) -> Cell:
    """A whole number without separators."""
    return Cell(str(value), value)


def minus(text: str) -> str:
    """A number's text with a minus sign, which is as wide as a plus, in place of a hyphen."""
    return text.replace("-", "−")


def number(value: float, digits: int = 2) -> Cell:
    """A number with `digits` decimals."""
    return Cell(minus(f"{value:z.{digits}f}"), value)


def signed(value: float, digits: int = 2) -> Cell:
    """A difference: a number with its sign."""
    return Cell(minus(f"{value:+z.{digits}f}"), value)


def with_error(value: float, error: float, digits: int = 2) -> Cell:
    """A number ± the half-width of its interval; sorted by the number."""
    return Cell(minus(f"{value:z.{digits}f} ± {error:.{digits}f}"), value)


def share(value: float) -> Cell:
    """A share, as a percentage."""
    return Cell(f"{value:.1%}", value)


def count_of(count: int, total: int) -> Cell:
    """“3 of 16”, sorted by the share."""
    return Cell(f"{count:,} of {total:,}", count / total)
