"""Checkpoints are written beside training, in an order that keeps the run's files consistent."""

from threading import Event

import pytest
import torch

from utils.runs.background import SaveFailed, Saver, snapshot


class Writer:
    """Records what it is asked to write; holds until told, or fails."""

    def __init__(self):
        self.written, self.go, self.begun = [], Event(), Event()
        self.failing = set()

    def __call__(self, name, state):
        self.begun.set()
        assert self.go.wait(10)
        if name in self.failing:
            raise OSError(28, "No space left on device")
        self.written.append((name, state["step"]))


def test_a_snapshot_does_not_change_with_what_it_is_of():
    weight = torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last)
    state = {"model": {"weight": weight}, "list": [weight, 3], "pair": (weight, "a"), "none": None}
    copy = snapshot(state)
    before = weight.clone()
    weight.zero_()
    for found in (copy["model"]["weight"], copy["list"][0], copy["pair"][0]):
        assert torch.equal(found, before)
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert copy["list"][1] == 3 and copy["pair"][1] == "a" and copy["none"] is None


def test_training_does_not_wait_and_the_newest_is_written():
    writer = Writer()
    saver = Saver(writer)
    saver.put(["last"], {"step": 1})
    assert writer.begun.wait(10)  # and is held there: what is handed over meanwhile waits
    saver.put(["best", "last"], {"step": 2})
    saver.put(["last"], {"step": 3})
    saver.put(["epoch_00004", "best", "last"], {"step": 4})
    saver.put(["last"], {"step": 5})
    assert writer.written == []
    writer.go.set()
    saver.finish()
    assert writer.written == [("last", 1), ("epoch_00004", 4), ("best", 4), ("last", 5)]
    saver.put(["last"], {"step": 6})
    saver.finish()
    assert writer.written[-1] == ("last", 6)


def test_a_last_checkpoint_never_speaks_of_a_best_one_that_is_not_there():
    writer = Writer()
    writer.go.set()
    writer.failing = {"best"}
    saver = Saver(writer)
    saver.put(["best", "last"], {"step": 1})
    with pytest.raises(SaveFailed, match=r"checkpoint best\.pth could not .*No space left"):
        saver.finish()
    saver.check()  # told once
    saver.put(["last"], {"step": 2})
    with pytest.raises(SaveFailed, match=r"best\.pth"):
        saver.finish()
    assert writer.written == []
    writer.failing = set()
    saver.put(["last"], {"step": 3})
    saver.finish()
    assert writer.written == [("best", 1), ("last", 3)]


class Interleaved(Saver):
    """In the middle of a `check`, lets a write fail."""

    def __init__(self, writer):
        super().__init__(writer)
        self.failed = Event()

    @property
    def _error(self):
        error = self.error
        if self._thread is not None:
            self.write.go.set()
            self.failed.wait(0.2)
        return error

    @_error.setter
    def _error(self, error):
        self.error = error
        if error:
            self.failed.set()


def test_a_failure_during_a_check_is_not_lost():
    writer = Writer()
    writer.failing = {"last"}
    saver = Interleaved(writer)
    saver.put(["last"], {"step": 1})
    with pytest.raises(SaveFailed, match=r"last\.pth"):
        saver.check()
        saver.finish()
