"""Drawings: figures that are saved as PNG files and embedded in a page.

Lines and text use the colour INK, which a page replaces by its own text colour, so that the same
drawing is legible on a light and on a dark background.
"""

import base64
import io
import re
from collections.abc import Sequence
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
class Strip:
    """A row of images: its label, the images side by side as a PNG file, and their number."""

    label: str
    png: bytes
    count: int

    @property
    def source(self) -> str:
        """The images as a URL that holds them."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Drawing:
    """A figure, and what a page makes of it.

    name: the stem of its file's name. text: its finding in words, the page's text alternative and
    caption. narrow: the same figure for narrow screens, where it isn't legible when shrunk.
    strips: for rows of images, which a page sets as images with labels of its own.
    """

    name: str
    figure: Figure
    text: str
    narrow: Figure | None = None
    strips: Sequence[Strip] = ()


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


def vector(drawing: Drawing, narrow: bool = False) -> str:
    """The drawing as an SVG element in the colour of the surrounding text."""
    figure = drawing.narrow if narrow else drawing.figure
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": f"{drawing.name}{narrow}"}):
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r' id="([\w.]+_\d+|image\w+)"', "", text)  # they repeat in other drawings
    text = re.sub(r" font-family: [^;\"]*;", "", text)  # the page's own
    text = re.sub(r'(?<= )(d|x|y|points)="[^"]*"', _two_decimals, text)
    return re.sub(r">\s*\n\s*<", "><", text).replace(INK, "currentColor")


def _two_decimals(attribute: re.Match) -> str:
    """Coordinates to a hundredth of a point: nearly half of a page's bytes would be digits."""
    return re.sub(r"(\.\d\d)\d+", r"\1", attribute[0]).replace("\n", " ")
