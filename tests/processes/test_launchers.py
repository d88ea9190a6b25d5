"""Several processes as they are really launched: mpiexec and torchrun, with their signals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import COMMAND, QUIET, SMALL, call, environment, metrics, only_run
from tests.conftest import ROOT
from utils.processes.peers import KILLED

BIN = Path(sys.executable).parent
MPIEXEC = [str(BIN / "mpiexec"), "-n"]
TORCHRUN = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node"]
LAUNCHERS = {"mpiexec": [*MPIEXEC, "2"], "torchrun": [*TORCHRUN, "2"]}
RUN = ["experiment=digits_dct_ladder", *SMALL, *QUIET, "task.estimators=[]"]
RUN += ["dataset.data_module.batch_size=66"]
LONG = [*RUN, "train.max_epochs=300", "train.eval_freq=1000", "train.checkpoint_every=5 steps"]

if not Path(MPIEXEC[0]).exists():
    pytest.skip("no mpiexec beside this Python (pip install mpich)", allow_module_level=True)


def command(launcher: str) -> list[str]:
    """torchrun starts Python itself."""
    return [*LAUNCHERS[launcher], *(COMMAND if launcher == "mpiexec" else COMMAND[2:])]


def start(folder, launcher):
    """A run that lasts, once it trains."""
    process = subprocess.Popen(
        [*command(launcher), *LONG],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 90
    while not list(folder.glob("runs/*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    return process


def members(folder) -> dict[int, str]:
    """The ranks of the processes that train in a folder, by process id."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(
                item.split("=", 1)
                for item in (place / "environ").read_text().split("\0")
                if "=" in item
            )
            script = (place / "cmdline").read_text().split("\0")[1:3]
            if (place / "cwd").readlink() == folder and any("run_exp" in s for s in script):
                found[int(place.name)] = variables.get("PMI_RANK", variables.get("RANK"))
        except (OSError, ValueError):
            continue
    return {process: rank for process, rank in found.items() if rank is not None}


def end(process, folder) -> tuple[str, float]:
    """What it printed to its errors, and how long it took to end with all that it started."""
    began = time.monotonic()
    try:
        _, errors = process.communicate(timeout=40)
        while members(folder) and time.monotonic() - began < 40:
            time.sleep(0.05)
        return errors, time.monotonic() - began
    finally:
        process.kill()
        for left in members(folder):
            os.kill(left, signal.SIGKILL)


@pytest.mark.slow
def test_torchrun_and_three_by_mpiexec(tmp_path):
    """The same figures as two processes of any launcher; one folder, one record, one terminal."""
    folders = {"torchrun": command("torchrun"), "mpiexec": [*MPIEXEC, "3", *COMMAND]}
    found = {}
    for name, launched in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        count = launched[-len(COMMAND) - 1] if name == "mpiexec" else "2"
        done = subprocess.run(
            [*launched, *RUN, "train.ddp=true", "train.max_epochs=1"],
            cwd=folder,
            env=environment(folder),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"batch 66 = {count} process(es) × 1 micro-batch(es)" in done.stdout
        assert done.stdout.count("epoch    1") == 1
        found[name] = metrics(only_run(folder))
    for one, other in zip(*found.values(), strict=True):
        assert one["val/nelbo"] == pytest.approx(other["val/nelbo"], rel=1e-3)


@pytest.mark.slow
def test_processes_with_other_code_do_not_train_together(tmp_path):
    """A machine whose copy of the project has a line more."""
    other = tmp_path / "other"
    shutil.copytree(ROOT, other, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    with open(other / "model" / "noise.py", "a") as file:
        file.write("\n# to be tried\n")
    command = [sys.executable, "-u", str(other / "run_experiment.py"), *RUN]
    done = subprocess.run(
        [*MPIEXEC, "1", *COMMAND, *RUN, ":", "-n", "1", *command],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode != 0 and not (tmp_path / "runs").exists()
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("Error in process 1: the digest of the code is ")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_process_is_the_end_of_all(tmp_path, launcher, rank):
    process = start(tmp_path, launcher)
    (victim,) = (p for p, place in members(tmp_path).items() if place == rank)
    os.kill(victim, signal.SIGKILL)
    errors, seconds = end(process, tmp_path)
    print(f"{launcher}, process {rank} killed: all ended after {seconds:.1f} s")
    assert process.returncode != 0 and seconds < 30 and not members(tmp_path)
    # mpiexec kills the others in a moment, with a message of its own that says less.
    who = f"Error in process {rank}: it" if rank != "0" else "Error: the main process"
    assert errors.count(f"{who} {KILLED}") == 1, errors


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_launcher_asked_to_stop(tmp_path, launcher, number):
    """Ctrl-C reaches all processes of a terminal; SIGTERM the launcher, which passes it on."""
    process = start(tmp_path, launcher)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    errors, seconds = end(process, tmp_path)
    print(f"{launcher}, {number.name}: {process.returncode} after {seconds:.1f} s")
    assert process.returncode != 0 and seconds < 30 and not members(tmp_path)
    assert errors.count("Interrupted: the same command goes on") <= 1
    before = len(metrics(only_run(tmp_path)))
    output = call(tmp_path, *LONG[:-3], f"train.max_epochs={before + 1}").stdout
    assert "epoch" in output
