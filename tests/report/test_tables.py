"""Tables: made once, shown by the terminal and by the page."""

import logging
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.evaluation.test_record import FULL
from utils.evaluation.record import ScoreRecord
from utils.files import write_json
from utils.report.page import Section, write_page
from utils.report.tables import layer_table, score_table, show_finished, show_score
from utils.table import Cell, Column, Table
from utils.terminal import Terminal

TABLE = Table(
    "caption",
    [Column("name", text=True), Column("detail", "explained", page_only=True), Column("figure")],
    [[Cell("a"), Cell("7 of 9", 7 / 9), Cell("1.50", 1.5)]],
    note="note\nits second line",
)


def test_the_terminal_leaves_out_details(capsys, caplog):
    with caplog.at_level(logging.INFO, "ladder_vae"):
        Terminal().table(TABLE)
    output = capsys.readouterr().out
    assert all(word in output for word in ("caption", "note", "name", "figure", "1.50"))
    assert "\\n" not in output
    assert "detail" not in output and "7 of 9" not in output
    assert caplog.messages == ["caption\nnote\nits second line\nname\tfigure\na\t1.50"]


@pytest.mark.parametrize("width", [50, 60, 80, 120, 200])
def test_a_narrow_terminal_leaves_out_columns_and_breaks_no_words(width, capsys, caplog):
    record = ScoreRecord.model_validate(FULL)
    terminal = Terminal()
    terminal.console.width = width
    with caplog.at_level(logging.INFO, "ladder_vae"):
        for table in (score_table(record), layer_table(record)):
            terminal.table(table)
            lines = capsys.readouterr().out.splitlines()
            assert max(map(len, lines)) <= width
            shown = table.for_terminal(width)
            first = next(i for i, line in enumerate(lines) if "──" in line)
            for row, line in zip(shown.rows, lines[first + 1 :], strict=False):
                assert all(cell.text in line for cell in row)
            assert len(shown.columns) >= (3 if width < 60 else 5)
            logged = caplog.messages[-1]
            assert all(c.name in logged for c in table.columns if not c.page_only)
    assert len(score_table(record).for_terminal(200).columns) == 9


def test_an_epochs_line_leaves_out_figures_in_a_fixed_order(capsys):
    terminal = Terminal()
    parts = [("epoch 1", 0), ("left 9", 2), ("(detail)", 1), ("*", 0)]
    for is_terminal, width, wanted in (
        (True, 40, "epoch 1  left 9  (detail)  *"),
        (True, 20, "epoch 1  left 9  *"),
        (True, 12, "epoch 1  *"),
        (False, 12, "epoch 1  left 9  (detail)  *"),
    ):
        terminal.console._force_terminal, terminal.console.width = is_terminal, width
        terminal.fields(parts)
        assert capsys.readouterr().out == wanted + "\n"


def test_the_page_has_every_column_and_its_explanation(tmp_path):
    page = write_page(tmp_path / "page.html", "title", [], [Section("section", tables=[TABLE])])
    text = page.read_text()
    assert "<b>detail</b> explained." in text and ' title="' not in text
    assert "7 of 9" in text and 'data-value="1.5"' in text
    assert "note" not in text.replace("notes", "")


def test_a_scores_tables_have_a_cell_per_column():
    record = ScoreRecord.model_validate(FULL)
    for table in (score_table(record), layer_table(record, shapes=[(1, 2, 2), (1, 4, 4)])):
        assert {len(row) for row in table.rows} == {len(table.columns)}
    show_score(Terminal(False), record)
    shapes = [row[2].text for row in layer_table(record, shapes=[(1, 2, 2), (1, 4, 4)]).rows]
    assert shapes == ["1 × 2 × 2", "1 × 4 × 4"]


def test_a_finished_run_without_its_checkpoints_says_so(tmp_path, capsys):
    path = write_json(tmp_path / "results.json", FULL)
    show_finished(Terminal(), path, {}, None)
    output = capsys.readouterr().out
    assert "Its best checkpoint is gone" in output and "trained on the images" not in output
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pth").touch()
    show_finished(Terminal(), path, {}, "/elsewhere")
    output = capsys.readouterr().out
    assert "if those in /elsewhere are others, give them another name=…" in output
    assert "is gone" not in output and f"task=report checkpoint={tmp_path} makes one" in output


def test_tables_need_neither_matplotlib_nor_scipy_stats():
    """Every task shows a score; only reports and comparisons draw and test."""
    program = "import sys, utils.report.tables; print('matplotlib' in sys.modules, "
    program += "'scipy.stats' in sys.modules)"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
