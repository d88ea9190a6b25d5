"""One self-contained HTML page: sections of text, sortable tables and drawings, light and dark."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import jinja2

from utils.files import atomic_write, make_folder
from utils.report.drawing import Drawing, vector
from utils.table import Table

TEMPLATE = Path(__file__).with_name("page.html.j2")


@dataclass(frozen=True)
class Section:
    """A heading and the content under it, in this order.

    drawings: each with a caption that says how to read it; its finding stands before that. terms:
    words and their explanations.
    """

    title: str
    paragraphs: Sequence[str] = ()
    points: Sequence[str] = ()
    tables: Sequence[Table] = ()
    drawings: Sequence[tuple[Drawing, str]] = field(default_factory=list)  # (drawing, caption)
    terms: Mapping[str, str] = field(default_factory=dict)


def write_page(path: Path, title: str, lead: Sequence[str], sections: Sequence[Section]) -> Path:
    """Write the page as one file that depends on no other file."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_unbroken,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    numbers = count(1)  # of captions that label a table or a drawing
    text = template.render(
        title=title,
        lead=lead,
        sections=sections,
        vector=vector,
        next_id=lambda: f"caption{next(numbers)}",
    )
    make_folder(path.parent)
    return atomic_write(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def _unbroken(value: object) -> object:
    """A text whose “95 %” no line break divides."""
    return value.replace("5 %", "5\N{NO-BREAK SPACE}%") if type(value) is str else value
