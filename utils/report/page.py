"""One self-contained HTML page: sections of text, sortable tables and drawings, light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from utils.files import atomic_write
from utils.report.drawing import Drawing, vector

TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Cell:
    """What a table shows, and the number that it is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header of (name, explanation) pairs; folded: closed until clicked."""

    caption: str
    header: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in this order."""

    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[tuple[Drawing, str]] = field(default_factory=list)  # (drawing, caption)


def number(value: float, digits: int = 2, suffix: str = "") -> Cell:
    """A cell of a number."""
    return Cell(f"{value:,.{digits}f}{suffix}", value)


def share(value: float) -> Cell:
    """A cell of a share, as a percentage."""
    return Cell(f"{value:.1%}", value)


def write_page(path: Path, title: str, lead: Sequence[str], sections: Sequence[Section]) -> Path:
    """The page as one file that needs no other."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(title=title, lead=lead, sections=sections, vector=vector)
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write(path, lambda file: file.write(text.encode()))
