"""No character ends a command, whatever the terminal's encoding is."""

import io
import sys

import pytest

from utils.streams import never_fail
from utils.table import Cell, Column, Table
from utils.terminal import Terminal

TEXT = "90.17 ± 1.05, −0.32 … 3×32, ε é 日"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "90.17 +- 1.05, -0.32 ... 3x32, eps e ?"),
        ("latin-1", "90.17 ± 1.05, -0.32 ... 3×32, eps é ?"),
        ("utf-8", "90.17 ± 1.05, −0.32 … 3×32, ε é 日"),
    ],
)
def test_what_cannot_be_shown_is_approximated(monkeypatch, encoding, shown):
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", errors)
    never_fail()
    Terminal().line(TEXT)
    Terminal().table(Table("±", [Column("a"), Column("±")], [[Cell("1"), Cell("−2")]]))
    print(f"{TEXT} \udcff", file=errors, flush=True)
    output.flush()
    lines = output.buffer.getvalue().decode(encoding).splitlines()
    assert lines[0] == shown
    assert errors.buffer.getvalue().decode(encoding) == f"{shown} ?\n"
    assert any("2" in line for line in lines[1:])


def test_streams_that_somebody_captures_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    never_fail()
    print(TEXT)
    assert sys.stdout.getvalue() == f"{TEXT}\n"
