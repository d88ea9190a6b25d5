"""As a scheduler takes a machine away and gives it back."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import COMMAND, PLAIN, QUIET, call, environment, metrics, only_run
from tests.conftest import ROOT

pytestmark = pytest.mark.slow
LONG = [*PLAIN, *QUIET, "train.max_epochs=12", "train.eval_freq=100", "task.estimators=[]"]


def start(folder, *arguments):
    """The command, in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**environment(folder), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_epochs(folder, count):
    """Until so many epochs are in the metrics."""
    until = time.monotonic() + 90
    while not any(p.read_text().count("\n") >= count for p in folder.glob("runs/*/metrics.jsonl")):
        assert time.monotonic() < until
        time.sleep(0.01)


def children(process_id):
    """The processes that a process has started."""
    listed = Path(f"/proc/{process_id}/task/{process_id}/children").read_text()
    return [int(child) for child in listed.split()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The metrics of the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    call(folder, *LONG)
    return metrics(only_run(folder))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_its_status_asks_for_the_same_command_again(tmp_path, undisturbed, number):
    for epochs in (2, 5, 8):
        process = start(tmp_path, *LONG)
        wait_for_epochs(tmp_path, epochs)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 75
        assert errors == "Interrupted: the same command goes on from the last checkpoint.\n"
    assert "continuing at epoch" in call(tmp_path, *LONG).stdout
    assert metrics(only_run(tmp_path)) == undisturbed


def test_submitit_requeues_the_job(tmp_path, undisturbed):
    """Its own launcher on this machine, which does as the one for SLURM."""
    process = start(tmp_path, "-m", "hydra/launcher=submitit_local", *LONG)
    wait_for_epochs(tmp_path, 3)
    (controller,) = children(process.pid)
    (job,) = children(controller)
    os.kill(job, signal.SIGUSR2)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    (printed,) = tmp_path.glob("runs/.submitit/*/*.out")
    assert "continuing at epoch" in printed.read_text()
    assert metrics(only_run(tmp_path)) == undisturbed
