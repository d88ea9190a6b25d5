"""Drawings: figures that are saved as PNG files and set into a page as SVG.

Ink is a colour of its own in them, which a page replaces by its text's, so that one drawing reads
on light and on dark.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

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
    """A figure, the stem of its file's name, and what it shows in words."""

    name: str
    figure: Figure
    text: str


def save(drawing: Drawing, folder: Path) -> Path:
    """As a PNG file; the folder is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{drawing.name}.png"
    with matplotlib.rc_context(STYLE):
        drawing.figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def vector(drawing: Drawing) -> str:
    """As an SVG element in the colour of the text around it."""
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": drawing.name}):
        drawing.figure.savefig(
            buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r' id="([\w.]+_\d+|image\w+)"', "", text)  # of groups and images: they repeat
    return text.replace(INK, "currentColor")
