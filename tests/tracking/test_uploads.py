"""Uploads in the background: what failed stays known until it has been sent."""

import threading
from types import SimpleNamespace

import pytest

from utils.tracking import wandb_uploads
from utils.tracking.wandb_uploads import Uploads


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_uploads.time, "sleep", lambda seconds: None)
    return Uploads(SimpleNamespace(offline=False), "run", tmp_path)


def test_a_failure_is_not_hidden_by_a_later_success(uploads):
    """The later batch begins while the first is still being tried."""
    begun, added, sent, full = threading.Event(), threading.Event(), [], OSError("disk full")

    def fail():
        begun.set()
        assert added.wait(10)
        raise full

    uploads.add("last", fail)
    uploads.start_online()
    assert begun.wait(10)
    uploads.add("tables", lambda: sent.append("tables"))
    uploads.start_online()
    added.set()
    uploads.close()
    assert uploads.error is full and sent == ["tables"]


def test_what_failed_is_sent_with_the_next_unless_there_is_a_newer_one(uploads):
    sent, room = [], threading.Event()

    def store(name):
        if not room.is_set():
            raise OSError("disk full")
        sent.append(name)

    for name in ("best", "last"):
        uploads.add(name, lambda name=name: store(f"{name} 1"))
    uploads.close()
    assert str(uploads.error) == "disk full" and sent == []
    room.set()
    uploads.add("last", lambda: store("last 2"))
    uploads.close()
    assert uploads.error is None and sent == ["best 1", "last 2"]
    uploads.close()
    assert sent == ["best 1", "last 2"]
