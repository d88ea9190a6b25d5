"""The folder's record is complete whatever happens to a mirror, and can be taken back to a step."""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.image import imsave

from tests.conftest import compose
from utils.processes.launch import Processes
from utils.terminal import Terminal
from utils.tracking.sinks import LocalSink, Sink
from utils.tracking.tensorboard import TensorBoardSink
from utils.tracking.tracker import Tracker, open_tracker


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
    for epoch in (1, 2, 3):
        sink.log({"a": 0.1}, epoch=epoch, step=10 * epoch)
    with open(path, "a") as file:
        file.write('{"epoch": 4, "st')
    with caplog.at_level(logging.WARNING):
        Tracker(tmp_path, [sink]).begin(2)
    assert "cut short" in caplog.text
    assert [row["epoch"] for row in sink.rows()] == [1, 2]
    assert path.read_text().count("\n") == 2


@pytest.mark.parametrize(
    "line", ["5", "[1]", "null", "{}", '{"epoch": "1", "step": 1}', "[" * 100_000, "\x80\xff"]
)
def test_a_line_that_is_no_row_is_left_out(tmp_path, caplog, line):
    path = tmp_path / "metrics.jsonl"
    sink = LocalSink(path)
    sink.log({"a": 0.1}, epoch=1, step=10)
    with open(path, "a", encoding="latin-1") as file:
        file.write(f"{line}\n")
    sink.log({"a": 0.2}, epoch=2, step=20)
    assert [row["step"] for row in sink.rows()] == [10, 20] and "left out" in caplog.text
    Tracker(tmp_path, [sink]).begin(1)
    assert path.read_text() == '{"epoch": 1, "step": 10, "a": 0.1}\n'


def test_a_mirror_in_trouble_does_not_end_the_run(tmp_path, caplog):
    local = LocalSink(tmp_path / "metrics.jsonl")
    tracker = Tracker(tmp_path, [Broken(), local])
    tracker.log({"a": 1.0}, epoch=1, step=1)
    assert len(local.rows()) == 1 and "Broken failed" in caplog.text
    assert tracker.local is local


def test_trouble_with_the_folder_itself_does(tmp_path):
    tracker = Tracker(tmp_path, [LocalSink(tmp_path / "gone" / "metrics.jsonl")])
    told = r"metrics.jsonl could not be written \(No such file.* folder was removed or renamed"
    with pytest.raises(OSError, match=told):
        tracker.log({"a": 1.0}, epoch=1, step=1)


def test_tensorboard_reads_what_is_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = tmp_path / "samples.png"
    imsave(picture, np.zeros((4, 4, 3)))
    sinks = [LocalSink(tmp_path / "metrics.jsonl"), TensorBoardSink(tmp_path / "events")]
    tracker = Tracker(tmp_path, sinks)
    tracker.begin(0)
    for step in (10, 20):
        tracker.log({"val/loss": step / 10}, epoch=step // 10, step=step)
    tracker.pictures([picture], epoch=2, step=20)
    tracker.histograms({"collapse/log_variance_0": [-1.0, -2.0, 0.5]}, epoch=2, step=20)
    tracker.summary({"test/nelbo": 3.0})
    tracker.close()
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("val/loss")]
    assert found == [(10, 1.0), (20, 2.0)]
    assert [event.value for event in events.Scalars("epoch")] == [1, 2]
    assert events.Images("figures/samples")[0].step == 20
    assert events.Histograms("collapse/log_variance_0")[0].histogram_value.num == 3
    assert "summary/text_summary" in events.Tags()["tensors"]


def test_without_tensorboard_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delattr("torch.utils.tensorboard", raising=False)  # where another test loaded it
    with pytest.raises(ValueError, match=r"pip install -e '.\[tensorboard\]'"):
        TensorBoardSink(tmp_path)


class Listing(Sink):
    """Somebody else's tracker: one class."""

    def __init__(self, folder):
        self.folder, self.calls = folder, []

    def log(self, values, epoch, step):
        """Keep the row."""
        self.calls.append((values, epoch, step))

    def close(self, failed):
        """Keep how the run ended."""
        self.calls.append(failed)


def test_a_further_sink_is_one_class_and_never_ends_a_run(tmp_path, capsys):
    made = []

    def listing(folder):
        made.append(Listing(folder))
        return made[0]

    def unreachable(folder):
        raise ConnectionError("nobody\nthere")

    settings = compose("digits_ladder", "wandb.setup.mode=disabled").wandb
    run = SimpleNamespace(path=tmp_path, processes=Processes())
    factories = [listing, unreachable, lambda folder: Broken()]
    with open_tracker(settings, run, None, Terminal(), factories) as tracker:
        tracker.begin(0)
        tracker.log({"a": 1.0}, epoch=1, step=2)
    assert made[0].folder == tmp_path and made[0].calls == [({"a": 1.0}, 1, 2), False]
    assert len(tracker.local.rows()) == 1
    told = capsys.readouterr().out
    assert told == "The tracker unreachable could not start, the run goes on: nobody there\n"
    other = SimpleNamespace(path=tmp_path, processes=Processes(rank=1, world=2))
    with open_tracker(settings, other, None, Terminal(), factories) as tracker:
        assert tracker.sinks == []
