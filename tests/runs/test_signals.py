"""Being asked to stop, as a scheduler or a person does it."""

import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from utils.runs.signals import SIGNALS, Interrupted, Signals


@pytest.mark.parametrize("number", SIGNALS)
def test_between_steps_it_is_noted_and_elsewhere_it_ends(number):
    status = 130 if number == signal.SIGINT else 75
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as asked, Signals(60):
        signal.raise_signal(number)
    assert asked.value.status == status and signal.getsignal(number) is before
    with Signals(60) as signals, signals.between_steps():
        assert not signals.stop_requested
        signal.raise_signal(number)
        assert signals.stop_requested and signals.status == status


def test_who_else_waits_for_a_signal_gets_it_when_the_run_has_ended():
    got = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
    try:
        with Signals(60) as signals, signals.between_steps():
            signal.raise_signal(signal.SIGUSR2)
            assert signals.stop_requested and not got
        assert got == [signal.SIGUSR2]
        with Signals(60):
            pass
        assert len(got) == 1
    finally:
        signal.signal(signal.SIGUSR2, before)


BUSY = """
import hashlib, sys, time
from utils.runs.signals import Signals
with Signals(float(sys.argv[1]), sys.argv[2] == "True") as signals, signals.between_steps():
    print("ready", flush=True)
    if sys.argv[3] == "True":  # minutes of C code, in which no handler of Python's can run
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
    time.sleep(20)
    while True:
        pass
"""


@pytest.mark.parametrize(
    ("grace", "numbers", "status", "in_c"),
    [
        (60, [signal.SIGTERM, signal.SIGTERM], 75, False),
        (60, [signal.SIGTERM, signal.SIGTERM], 75, True),
        (60, [signal.SIGINT, signal.SIGINT], 130, True),
        (60, [signal.SIGUSR1, signal.SIGTERM], 75, False),
        (0.5, [signal.SIGTERM], 75, False),
        (0.5, [signal.SIGTERM], 75, True),
        (0.5, [signal.SIGUSR1], 75, True),
    ],
)
def test_asked_twice_or_when_its_time_is_over_it_ends_at_once(grace, numbers, status, in_c):
    assert ends_with(grace, False, in_c, numbers) == status


def test_ctrl_c_has_a_time_where_a_process_may_wait_for_another():
    assert ends_with(0.3, True, True, [signal.SIGINT]) == 130


def test_a_process_alone_takes_its_time_after_ctrl_c():
    with pytest.raises(subprocess.TimeoutExpired):
        ends_with(0.1, False, True, [signal.SIGINT], patience=0.5)


def ends_with(grace, several, in_c, numbers, patience=10):
    """The status of a busy process that gets these signals, soon after the last."""
    command = [sys.executable, "-c", BUSY, *map(str, (grace, several, in_c))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.2 if in_c else 0.0)  # until it is in there
    began = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    try:
        status = process.wait(patience)
        assert time.monotonic() - began < 3
        return status
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
