"""Drawings: figures that are saved as PNG files and embedded in a page as SVG.

Lines and text use the colour INK, which a page replaces by its own text colour, so that the same
drawing is legible on a light and on a dark background.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from utils.files import atomic_write, make_folder

INK = "#010203"  # black to the eye
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "svg.fonttype": "none",
    "legend.frameon": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
}


@dataclass(frozen=True)
class Drawing:
    """A figure, the stem of its file's name, and its description in words."""

    name: str
    figure: Figure
    text: str


def verbatim(text: str) -> str:
    """A text that is not ours, as a label: matplotlib would take $…$ for mathematics."""
    return text.replace("$", r"\$")


def save(drawing: Drawing, folder: Path) -> Path:
    """Write the drawing as a PNG file; creates the folder if it is missing."""
    picture = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        drawing.figure.savefig(picture, format="png", dpi=120, bbox_inches="tight")
    make_folder(folder)
    return atomic_write(
        folder / f"{drawing.name}.png", lambda file: file.write(picture.getbuffer())
    )


def vector(drawing: Drawing) -> str:
    """The drawing as an SVG element in the colour of the surrounding text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": drawing.name}):
        drawing.figure.savefig(
            buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r' id="([\w.]+_\d+|image\w+)"', "", text)  # they repeat in other drawings
    return text.replace(INK, "currentColor")
