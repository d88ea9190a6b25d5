"""The folder's record is complete whatever happens to a mirror, and can be taken back to a step."""

import logging

import pytest

from utils.tracking import LocalSink, Sink, Tracker


class Broken(Sink):
    """A mirror that always fails."""

    def log(self, values, epoch, step):
        """Fail."""
        raise ConnectionError("away")


def test_rows_come_back(tmp_path):
    sink = LocalSink(tmp_path / "metrics.jsonl")
    assert sink.rows() == []
    for step in (1, 2, 3):
        sink.log({"train/loss": step / 10}, epoch=1, step=step)
    assert [row["step"] for row in sink.rows()] == [1, 2, 3]
    assert sink.rows()[1] == {"epoch": 1, "step": 2, "train/loss": 0.2}


def test_rewinding_drops_what_will_be_logged_again_and_a_line_cut_short(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    sink = LocalSink(path)
    for step in (1, 2, 3):
        sink.log({"a": 0.1}, epoch=1, step=step)
    with open(path, "a") as file:
        file.write('{"epoch": 2, "st')
    with caplog.at_level(logging.WARNING):
        Tracker(tmp_path, [sink]).rewind(2)
    assert "cut short" in caplog.text
    assert [row["step"] for row in sink.rows()] == [1, 2]
    assert path.read_text().count("\n") == 2


def test_a_mirror_in_trouble_does_not_end_the_run(tmp_path, caplog):
    local = LocalSink(tmp_path / "metrics.jsonl")
    tracker = Tracker(tmp_path, [Broken(), local])
    tracker.log({"a": 1.0}, epoch=1, step=1)
    assert len(local.rows()) == 1 and "Broken failed" in caplog.text
    assert tracker.local is local


def test_trouble_with_the_folder_itself_does(tmp_path):
    tracker = Tracker(tmp_path, [LocalSink(tmp_path / "gone" / "metrics.jsonl")])
    with pytest.raises(FileNotFoundError):
        tracker.log({"a": 1.0}, epoch=1, step=1)
