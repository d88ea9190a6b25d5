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
import sys, time
from utils.runs.signals import Signals
with Signals(float(sys.argv[1])) as signals, signals.between_steps():
    print("ready", flush=True)
    time.sleep(20)
    while True:
        pass
"""


@pytest.mark.parametrize(
    ("grace", "numbers", "status"),
    [
        (60, [signal.SIGTERM, signal.SIGTERM], 75),
        (60, [signal.SIGINT, signal.SIGINT], 130),
        (60, [signal.SIGUSR1, signal.SIGTERM], 75),
        (0.5, [signal.SIGTERM], 75),
        (0.5, [signal.SIGUSR1], 75),
    ],
)
def test_asked_twice_or_when_its_time_is_over_it_ends_at_once(grace, numbers, status):
    command = [sys.executable, "-c", BUSY, str(grace)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    began = time.monotonic()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    assert process.wait(10) == status and time.monotonic() - began < 3
    process.stdout.close()
