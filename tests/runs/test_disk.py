"""Real runs whose disk fills up, whose folder is removed, whose terminal lacks characters."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import (
    COMMAND,
    OWN_DATA,
    PLAIN,
    QUIET,
    call,
    call_each,
    environment,
    metrics,
    only_run,
)

pytestmark = pytest.mark.slow
LONG = [*PLAIN, *QUIET, "train.max_epochs=12"]
EPOCHS = list(range(1, 13))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own, of 30 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a disk is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def started(folder: Path, *arguments: str, epochs: int) -> subprocess.Popen:
    """A run that has been training for some epochs."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while time.monotonic() < end:
        found = list(folder.glob("runs/*/metrics.jsonl"))
        if found and found[0].read_text().count("\n") >= epochs:
            return process
        time.sleep(0.01)
    process.kill()
    raise TimeoutError("no epoch in time")


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("stop", r"Error: Training stopped at step \d+: the checkpoint |Error: .*/metrics.jsonl"),
        ("continue", r"Error: .*/metrics.jsonl could not be written \(No space left on device\)"),
    ],
)
def test_a_disk_that_fills_up_costs_nothing_that_it_has(small_disk, tmp_path, policy, told):
    (tmp_path / "runs").symlink_to(small_disk)
    arguments = [*LONG, f"train.on_save_error={policy}"]
    process = started(tmp_path, *arguments, epochs=2)
    with open(small_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
        while True:
            filler.write(bytes(1 << 16))
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and errors.count("\n") == 1, errors
    assert re.match(told, errors) and "No space left" in errors
    run = only_run(tmp_path)
    assert not list(run.rglob("*.partial"))
    (small_disk / "filler").unlink()
    assert "continuing at epoch" in call(tmp_path, *arguments).stdout
    assert [row["epoch"] for row in metrics(run)] == EPOCHS and (run / "results.json").exists()


def test_a_run_whose_folder_is_removed_says_so_and_makes_no_other(tmp_path):
    process = started(tmp_path, *LONG, epochs=2)
    run = only_run(tmp_path)
    run.rename(tmp_path / "aside")
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and errors.count("\n") == 1, errors
    assert f"{run} was removed or renamed" in errors or "its folder was removed or" in errors
    assert not run.exists() or not list(run.rglob("*.*"))
    (tmp_path / "runs").mkdir(exist_ok=True)
    shutil.rmtree(run, ignore_errors=True)
    (tmp_path / "aside").rename(run)
    assert "continuing at epoch" in call(tmp_path, *LONG).stdout
    assert [row["epoch"] for row in metrics(run)] == EPOCHS


def test_scores_that_cannot_be_written_are_shown(trained, tmp_path):
    """As by a quota: no file may be over 1 kB."""
    best = only_run(trained[0]) / "checkpoints" / "best.pth"
    limited = ("bash", "-c", 'ulimit -f 1; exec "$@"', "bash")
    arguments = ["task=test", f"checkpoint={best}", OWN_DATA, f"task.output={tmp_path / 'scores'}"]
    found = call(tmp_path, *arguments, launcher=limited, status=1)
    path = tmp_path / "scores" / "test_scores.npz"
    assert found.stderr.startswith(
        f"Error: {path} could not be written (File too large): make room"
    )
    assert found.stderr.count("\n") == 1 and "iwae" in found.stdout
    assert not list((tmp_path / "scores").iterdir())


def test_a_terminal_of_ascii_alone_costs_nothing(tmp_path):
    arguments = [*PLAIN, *QUIET, "train.max_epochs=1"]
    encoded = ("env", "PYTHONIOENCODING=ascii")
    found = call(tmp_path, *arguments, launcher=encoded)
    assert found.stderr == "" and found.stdout.isascii() and "+-" in found.stdout
    assert (only_run(tmp_path) / "results.json").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
def test_a_run_of_another_user_can_be_used_but_not_written_to(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "copy")
    run = only_run(tmp_path / "copy")
    os.chown(run, 12345, -1)
    arguments = ["task=sample", f"checkpoint={run}", OWN_DATA, "task.num_images=2"]
    found = call(tmp_path, *arguments, status=1)
    assert found.stderr.startswith(f"Error: {run} belongs to another user, so nothing was written")
    assert "task.output=" in found.stderr and found.stderr.count("\n") == 1
    call(tmp_path, *arguments, f"task.output={tmp_path / 'here'}")
    assert (tmp_path / "here" / "samples.npz").exists()


def test_a_runs_dir_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ["experiment=digits_ladder", "runs_dir=file/x", "wandb.setup.mode=disabled"]
    for status, _, errors in call_each(tmp_path, [arguments, ["-m", *arguments]]):
        assert status == 1 and errors.count("\n") == 1, errors
        assert errors.startswith("Error: runs_dir") and "file/x" in errors and "another" in errors
