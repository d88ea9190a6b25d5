"""Names of files, runs and settings may hold anything; the terminal and the log get text."""

import json
import logging
import os

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.commands import call, call_each
from utils.runs.access import RunLog, log_to_file
from utils.table import Cell, Column, Table
from utils.terminal import Terminal, duration, one_line, printable

# Clears the screen, sets the window's title, moves up, is not UTF-8, turns the text's direction.
NASTY = (
    "\x1b[2J",
    "\x1b]0;t\x07",
    "x\n\x1b[1A",
    "b\udcff",
    "a\u202eb",
    "\x9b1m",
    "\r\x00",
    "\u2028",
)
ALLOWED = "\n\t"


def clean(text: str) -> bool:
    """Whether it holds what may be shown alone."""
    return all(character.isprintable() or character in ALLOWED for character in text)


def test_what_is_printable_stays():
    for text in ("", "plain", "−log p(x) in nats, ü 文 🙂", r"a\b", "[red]x[/red]"):
        assert printable(text) == text
    assert printable("a\x1b[2Jb\n\t\udcff") == r"a\x1b[2Jb\n\t\udcff"
    assert printable("a\nb\t\x1b", kept="\n\t") == "a\nb\t\\x1b"
    assert one_line(ValueError("a\x1b[0m\n b")) == r"a\x1b[0m b"


@pytest.fixture
def log_file(tmp_path):
    """A log as a run has it; the handlers are as they were afterwards."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    for handler in before:
        root.removeHandler(handler)
    log_to_file(tmp_path / "run.log")
    yield tmp_path / "run.log"
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)


def test_nothing_steers_the_terminal_or_the_log(log_file, monkeypatch):
    for handler in list(logging.getLogger().handlers):  # pytest's reports are UTF-8
        if not isinstance(handler, RunLog):
            logging.getLogger().removeHandler(handler)
    terminal = Terminal()
    terminal.console = Console(highlight=False, soft_wrap=True, width=200, record=True)
    plain = Console(highlight=False, width=200)
    with plain.capture() as expected:  # what Rich itself adds to a table
        plain.print("x")
    assert clean(expected.get())
    log = logging.getLogger("ladder_vae")
    with terminal.console.capture() as shown:
        for text in (*NASTY, "[link=file:///x]y[/link]"):
            terminal.line(f"a file {text} here")
            columns = [Column(f"column {text}", text=True)]
            terminal.table(Table(f"of {text}", columns, [[Cell(f"cell {text}")]]))
            log.info("%s", text)
            log.info(f"formatted {text}")
            try:
                raise ValueError(text)
            except ValueError:
                log.exception("It failed")
    assert clean(shown.get()) and r"\x1b[2J here" in shown.get()
    assert "cell [link=file:///x]y[/link]" in shown.get()
    logged = log_file.read_text(encoding="utf-8")
    assert clean(logged) and r"\x1b]0;t\x07" in logged and r"\udcff" in logged
    assert logged.count("a file") == len(NASTY) + 1


def test_where_no_bar_can_be_shown_there_are_lines(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("utils.terminal.time.monotonic", lambda: now[0])
    with Terminal().bar("scoring", total=1000, done=400) as bar:
        for _ in range(6):
            now[0] += 4.0
            bar.advance("K = 5", count=100)
    with Terminal(shown=False).bar("silent", 3) as bar:
        now[0] += 100
        bar.count(1)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["scoring: 700 of 1,000, 12 s left, K = 5"]  # after 12 s; the end needs none


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4, "4 s"),
        (89, "89 s"),
        (90, "1.5 min"),
        (3600, "60 min"),
        (5400, "1.5 h"),
        (1e7, "116 days"),
        (7200, "2.0 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_messages_of_the_command_are_printable(tmp_path):
    cases = [["task=test", f"checkpoint='{text}.pth'"] for text in NASTY[:-1] if "\n" not in text]
    cases += [[f"experiment='{text}'"] for text in NASTY[:2]]
    cases += [["experiment=digits_ladder", f"+{text}=1"] for text in NASTY[:2]]
    for case, (status, output, errors) in zip(cases, call_each(tmp_path, cases), strict=True):
        assert status == 1 and errors.startswith("Error: "), (case, output, errors)
        assert errors.count("\n") == 1 and clean(output + errors), (case, errors)


def test_images_with_any_names_are_used_or_passed_over(tmp_path):
    """Names that are no UTF-8 or hold escape sequences, in folders that are classes."""
    random = np.random.default_rng(0)
    for folder in ("one", "two\x1b[2J", "three\udcff"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for index in range(20):
            path = tmp_path / "images" / folder / f"\x1b[31m{index}\udcfe.png"
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(os.fsencode(path).decode("utf-8", "surrogateescape"))
        (tmp_path / "images" / folder / "damaged\x1b[2J\udcff.png").write_bytes(b"no image")
    arguments = ["task=check_data", "experiment=cifar_dct_ladder", "dataset=image_folder"]
    arguments += [f"dataset.root={tmp_path / 'images'}", "dataset.size=8", "model.num_ch=4"]
    arguments += ["model.latent_scales=[1,1]", "model.latent_width=[1,1]", "model.ctx_size=2"]
    found = call(tmp_path, *arguments, "task.output=here")
    assert clean(found.stdout + found.stderr), found.stdout
    assert r"two\x1b[2J" in found.stdout and r"three\udcff" in found.stdout
    record = json.loads((tmp_path / "here" / "check_data.json").read_text())
    assert sum(split["images"] for split in record["splits"].values()) == 60
    assert any("3 passed over" in note for note in record["notes"])
