"""Tables: made once, shown by the terminal and by the page."""

import logging
import subprocess
import sys

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
    note="note",
)


def test_the_terminal_leaves_out_details(capsys, caplog):
    with caplog.at_level(logging.INFO, "ladder_vae"):
        Terminal().table(TABLE)
    output = capsys.readouterr().out
    assert all(word in output for word in ("caption", "note", "name", "figure", "1.50"))
    assert "detail" not in output and "7 of 9" not in output
    assert caplog.messages == ["caption\nnote\nname\tfigure\na\t1.50"]


def test_the_page_has_every_column_and_its_explanation(tmp_path):
    page = write_page(tmp_path / "page.html", "title", [], [Section("section", tables=[TABLE])])
    text = page.read_text()
    assert 'title="explained"' in text and "7 of 9" in text and 'data-value="1.5"' in text
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
    show_finished(Terminal(), path, {})
    assert "Its best checkpoint is gone" in capsys.readouterr().out
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pth").touch()
    show_finished(Terminal(), path, {})
    output = capsys.readouterr().out
    assert "is gone" not in output and f"task=report checkpoint={tmp_path} makes one" in output


def test_tables_need_neither_matplotlib_nor_scipy_stats():
    """Every task shows a score; only reports and comparisons draw and test."""
    program = "import sys, utils.report.tables; print('matplotlib' in sys.modules, "
    program += "'scipy.stats' in sys.modules)"
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]
