"""Output where the terminal's encoding lacks a character: something near it in ASCII, no error."""

import codecs
import sys
import unicodedata

NEAR = {
    "−": "-",
    "–": "-",
    "—": "-",
    "─": "-",
    "±": "+-",
    "×": "x",
    "…": "...",
    "’": "'",
    "“": '"',
    "”": '"',
    "ε": "eps",
    "δ": "delta",
    "σ": "sigma",
    "μ": "mu",
    "→": "->",
}


def near_ascii(error: UnicodeError) -> tuple[str, int]:
    """What to write instead of the characters that could not be encoded, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_near, error.object[error.start : error.end])), error.end


def _near(character: str) -> str:
    letters = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return NEAR.get(character) or letters or "?"


def never_fail() -> None:
    """From now on, no character that is printed ends the command."""
    codecs.register_error("near_ascii", near_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # else somebody captures it
            stream.reconfigure(errors="near_ascii")
