"""A process that is stopped, not dead: it is named, the others end, and signals go on to work."""

import os
import signal
import socket
import subprocess
import sys
import time
from threading import Event

import pytest
import torch

from tests.commands import only_run
from tests.processes.test_failures import run, slow
from utils.processes import peers
from utils.processes.connections import Peer
from utils.processes.ranks import Processes

SOON = {"BEAT": 0.2, "STOPPED_SILENCE": 0.8, "MAIN_EXIT_TIMEOUT": 1.0, "EXIT_TIMEOUT": 1.0}
STOPPED = "it is stopped"


@pytest.mark.parametrize(("world", "rank"), [(2, 1), slow(3, 0), slow(3, 2)])
def test_a_stopped_process_is_named_and_the_run_ends(tmp_path, world, rank):
    stuck = "train.stuck_minutes=0.03"
    statuses, _, _, errors = run(tmp_path, world, [rank, 4, "halt"], stuck, peers=SOON)
    assert set(statuses) == {1}
    # Process 0 says so too, when it goes on.
    named, ended = sorted(set(errors.splitlines()), key=lambda line: "Without it" not in line)
    assert named.startswith(f"Process {rank} (pid ") and f"{STOPPED}. Without it" in named
    prefix = f"Error in process {rank}: it" if rank else "Error: the main process"
    silent = "has been silent for 0.03 minutes (train.stuck_minutes)"
    assert ended == f"{prefix} {silent}: {STOPPED}; {peers.AGAIN}"
    folder = only_run(tmp_path)
    assert (named in (folder / "run.log").read_text()) == (rank != 0)
    saved = torch.load(folder / "checkpoints" / "last.pth", weights_only=True)
    assert saved["progress"]["step"] >= 2


@pytest.mark.slow
def test_a_process_that_goes_on_is_welcome(tmp_path):
    fault = [1, 4, "halt", "sleep 4; kill -CONT {own}"]
    statuses, _, _, errors = run(tmp_path, 2, fault, "train.max_epochs=1", peers=SOON)
    named, heard = errors.splitlines()
    assert statuses == [0, 0] and STOPPED in named and heard == "Process 1 is heard again."


@pytest.mark.parametrize(
    ("number", "times", "grace"),
    [
        (signal.SIGTERM, 1, 0.5),
        slow(signal.SIGINT, 1, 0.5),
        slow(signal.SIGTERM, 2, 600),
        slow(signal.SIGINT, 2, 600),
    ],
)
def test_a_signal_is_honoured_while_another_process_is_stopped(tmp_path, number, times, grace):
    """The main thread is in a collective operation all the while."""
    kill = f"kill -{number} {{0}}; sleep 0.2; " * times
    gone = "while kill -0 {0}; do sleep 0.05; done; date +%s.%N >gone"
    fault = [1, 4, "halt", f"sleep 0.5; date +%s.%N >sent; {kill} {gone}"]
    more = f"train.grace_seconds={grace}"
    statuses, *_ = run(tmp_path, 2, fault, more, peers={"EXIT_TIMEOUT": 1.0})
    sent, gone = (float((tmp_path / name).read_text()) for name in ("sent", "gone"))
    print(f"{signal.Signals(number).name} × {times}: it had ended {gone - sent:.1f} s later")
    assert statuses[0] == (130 if number == signal.SIGINT else 75) and gone - sent < 8


@pytest.mark.slow
def test_with_its_true_times_it_is_named_within_a_minute(tmp_path):
    """And a process that is busy for one, in C code that keeps Python's lock, is not."""
    statuses, _, _, errors = run(tmp_path, 2, [1, 4, "hold", 62], "train.max_epochs=1")
    assert statuses == [0, 0] and errors == ""
    began, named = "date +%s.%N >began", "while ! grep -q silent errors0.txt; do sleep 0.1; done"
    fault = [1, 5, "halt", f"{began}; {named}; date +%s.%N >named; kill -TERM {{0}}"]
    run(tmp_path, 2, fault, "train.grace_seconds=1", "train.seed=1")
    seconds = [float((tmp_path / name).read_text()) for name in ("began", "named")]
    print(f"a stopped process was named after {seconds[1] - seconds[0]:.1f} s")
    assert seconds[1] - seconds[0] < 60


@pytest.fixture
def watching(monkeypatch):
    """What a monitor of one peer says, and the peer's end of the connection."""
    monkeypatch.setattr(peers, "BEAT", 0.02)
    for name in ("STOPPED_SILENCE", "UNSEEN_SILENCE", "RUNNING_SILENCE"):
        monkeypatch.setattr(peers, name, 0.4)
    said, ended = [], Event()
    monkeypatch.setattr(peers.PeerMonitor, "_say", lambda self, text: said.append(text))
    monkeypatch.setattr(os, "_exit", lambda status: ended.set())
    here, there = socket.socketpair()
    monitor = peers.PeerMonitor(Processes(0, 2, 0, 2), {1: Peer(here, 1, "there")})
    yield monitor, there, said
    monitor.close()
    there.close()


def test_time_in_which_this_process_did_not_run_is_no_silence(watching, monkeypatch):
    """A laptop that sleeps, a job that is suspended: the clock leaps for all processes."""
    _, there, said = watching
    ticks = iter(range(0, 10**9, 3600))
    clock = type("Clock", (), {"monotonic": lambda: next(ticks)})
    monkeypatch.setattr(peers, "time", clock)
    time.sleep(0.12)  # a few leaps
    assert said == []
    there.sendall(b'{"beat": true}\n')
    time.sleep(1.0)
    assert len(said) == 1 and "Process 1 (pid 1 on there) has been silent" in said[0]


def test_a_process_that_has_finished_is_not_missed(watching):
    monitor, there, said = watching
    monitor.stuck_seconds = 0.3
    there.sendall(b'{"done": true}\n')
    there.close()
    time.sleep(0.8)
    assert said == [] and monitor.termination is None


def test_how_long_a_process_may_be_silent():
    """As long as it takes to be sure: one that runs may hold Python's lock, as in an import."""
    held = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    peer = Peer(None, held.pid, socket.gethostname())
    try:
        assert peer.is_stopped is False and peers._patience(peer) == (75, "it hangs")
        held.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, held.pid, os.WSTOPPED)
        assert peers._patience(peer) == (10, "it is stopped")
    finally:
        held.kill()
        held.communicate()
    unseen = (55, "it is stopped, or its machine hangs")
    assert peers._patience(peer) == peers._patience(Peer(None, os.getpid(), "far")) == unseen


@pytest.mark.parametrize("message", [b"garbage\n", b'{"end": {"rank": "1"}}\n', b"{", b"[1]\n"])
def test_what_is_no_message_ends_the_run(watching, message):
    monitor, there, _ = watching
    there.sendall(message)
    there.close()
    monitor.wait_for_termination()
    assert monitor.termination.rank == 1 and "was killed" in monitor.termination.error
