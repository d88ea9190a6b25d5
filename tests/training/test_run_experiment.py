"""Training by the command as a user types it, in processes of its own."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.commands import (
    COMMAND,
    OWN_DATA,
    PLAIN,
    QUIET,
    SMALL,
    call,
    environment,
    metrics,
    only_run,
)
from tests.few_digits import FEW

FIGURES = ("context", "kl_per_layer", "reconstructions", "reconstructions_top")
FIGURES += ("samples", "samples_fixed_top", "diffusion")


def test_training_leaves_everything_in_one_folder(trained):
    folder, _ = trained
    run = only_run(folder)
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == ["runs"]
    assert {p.stem for p in (run / "figures").glob("*.png")} == set(FIGURES)
    for name in ("last", "best"):
        assert (run / "checkpoints" / f"{name}.pth").stat().st_size > 100_000
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"]["num_ch"] == 16 and settings["name"] == "digits_dct_ladder"
    assert [row["epoch"] for row in metrics(run)] == [1, 2]
    found = json.loads((run / "results.json").read_text())
    assert found["bound"]["images"] == FEW and len(found["bound"]["kl"]) == 7
    assert [entry["estimator"] for entry in found["likelihoods"]] == ["iwae", "published"]
    with np.load(run / "results.npz") as arrays:
        assert arrays["kl"].shape == (FEW, 7)
        assert arrays["nll_iwae"].mean() == pytest.approx(found["likelihoods"][0]["nll"])
    assert (run / "report" / "report.html").exists() and (run / "report" / "layers.png").exists()
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["bound"] == found["bound"] and len(report["layers"]) == 7
    assert "epoch    2" in (run / "run.log").read_text()
    (record,) = run.glob("wandb/offline-run-*/*.wandb")  # no account: recorded offline
    for name in (b"val/nelbo", b"figures/samples", b"test/nll_iwae"):
        assert name in record.read_bytes()


def test_the_terminal_shows_epochs_a_table_and_the_folder_and_nothing_else(trained):
    folder, output = trained
    assert output.stderr == ""
    lines = output.stdout.splitlines()
    assert lines[0].startswith("digits_dct_ladder-seed123-")
    assert sum(line.startswith("epoch ") for line in lines) == 2
    for word in ("split", "estimator", "iwae", "published", "bits/dim", "active", "context"):
        assert word in output.stdout
    run = only_run(folder)
    assert lines[-2].endswith(str(run))
    assert lines[-1] == f"Recorded for W&B offline; task=sync run={run} uploads it."


@pytest.mark.slow
def test_without_its_account_wandb_records_offline_and_says_so(tmp_path):
    arguments = [*PLAIN, "train.max_epochs=1", *QUIET[1:], "wandb.setup.mode=online"]
    output = call(tmp_path, *arguments).stdout
    assert "W&B (mode online) could not start, recording offline instead: " in output
    assert list(only_run(tmp_path).glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.slow
def test_a_finished_run_is_shown_and_force_keeps_the_old_one(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    run = only_run(folder)
    before = (run / "results.json").read_bytes()
    output = call(folder, "experiment=digits_dct_ladder", *SMALL).stdout
    assert "task.force=true trains it again" in output and "epoch" not in output
    assert (run / "results.json").read_bytes() == before
    call(folder, "experiment=digits_dct_ladder", *SMALL, *QUIET, "task.force=true")
    assert (folder / "runs" / f"{run.name}.old1" / "results.json").read_bytes() == before
    assert (run / "results.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_command_continues_a_run_that_was_stopped(trained, tmp_path, number):
    arguments = ["experiment=digits_dct_ladder", *SMALL, *QUIET, "train.checkpoint_every=0"]
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    second = "runs/*/checkpoints/last.previous.pth"  # the first is of no step
    while not list(tmp_path.glob(second)) and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 75)
    assert errors == "Interrupted: the same command goes on from the last checkpoint.\n"
    assert not list(tmp_path.glob("runs/*/results.json"))
    output = call(tmp_path, *arguments).stdout
    assert "continuing at epoch" in output
    assert metrics(only_run(tmp_path)) == metrics(only_run(trained[0]))


@pytest.mark.slow
def test_a_run_stopped_after_its_scores_comes_to_its_end(trained, tmp_path):
    """By the same command, which does what is left and scores nothing again."""
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    run = only_run(folder)
    before = {name: (run / name).read_bytes() for name in ("results.json", "metrics.jsonl")}
    report = json.loads((run / "report" / "report.json").read_text())
    arguments = ["experiment=digits_dct_ladder", *SMALL, *QUIET[:1]]
    shutil.rmtree(run / "report")
    (run / "thumbnails.npz").unlink()
    (run / ".concluding").touch()
    output = call(folder, *arguments).stdout
    assert "epoch    1" not in output and (run / "thumbnails.npz").exists()
    assert {name: (run / name).read_bytes() for name in before} == before
    assert json.loads((run / "report" / "report.json").read_text()) == report
    assert not (run / ".concluding").exists()
    assert "Finished before" in call(folder, *arguments).stdout
    (run / ".concluding").touch()  # without the state that training goes on from: as it is
    for path in (run / "checkpoints").glob("last*"):
        path.unlink()
    assert "Finished before" in call(folder, *arguments).stdout


@pytest.mark.slow
def test_a_run_is_continued_by_its_wandb_id_with_its_own_settings(trained, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(trained[0], folder)
    run = only_run(folder)
    (run / "results.json").unlink()
    wandb_id = "12e45678"  # an id that could be read as a number, and an infinite one
    (run / "run.json").write_text(json.dumps({"wandb_id": wandb_id}))
    refused = call(
        folder, f"train.resume_id={wandb_id}", *QUIET, status=1
    )  # it names code of its own
    assert f"add {OWN_DATA} to the command" in refused.stderr and refused.stderr.count("\n") == 1
    call(folder, f"train.resume_id={wandb_id}", OWN_DATA, *QUIET)
    assert only_run(folder) == run and (run / "results.json").exists()
    aside = run.rename(run.with_name("kept"))
    found = call(folder, f"train.resume_id={wandb_id}", OWN_DATA, *QUIET, status=1)
    assert f"is of the run in runs/kept, whose settings name it {run.name}: rename" in found.stderr
    assert found.stderr.count("\n") == 1 and only_run(folder) == aside
    found = call(folder, "train.resume_id=nobody", status=1)
    assert found.stderr.startswith("Error: train.resume_id=nobody is neither of a run in runs_dir")
    assert found.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_has_a_folder_for_each_job_and_goes_on_after_an_error(tmp_path):
    arguments = ["-m", *PLAIN, *QUIET, "train.max_epochs=1", "train.seed=0,-1,1"]
    output = call(tmp_path, *arguments, status=1)
    seeds = sorted(p.name.split("-")[1] for p in (tmp_path / "runs").iterdir() if p.is_dir())
    assert seeds == ["seed0", "seed1"]
    assert output.stderr.count("Error: train.seed=-1 is not valid") == 1
    assert "Traceback" not in output.stderr


@pytest.mark.slow
def test_two_processes_share_one_run(tmp_path):
    """As mpiexec and torchrun start them: one folder, one record, the global batch divided."""
    mpiexec = Path(sys.executable).parent / "mpiexec"
    if not mpiexec.exists():
        pytest.skip("no mpiexec beside this Python (pip install mpich)")
    arguments = ["experiment=digits_dct_ladder", *SMALL, *QUIET, "train.ddp=true"]
    found = call(tmp_path, *arguments, launcher=(str(mpiexec), "-n", "2"))
    assert "batch 100 = 2 process(es) × 1 micro-batch(es) × 50; started by mpi" in found.stdout
    assert found.stdout.count("epoch    1") == 1 and found.stderr == ""
    assert len(metrics(only_run(tmp_path))) == 2
    assert json.loads((only_run(tmp_path) / "results.json").read_text())["bound"]["images"] == FEW


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_checkpoints_that_do_not_fit_are_told_at_once(tmp_path, policy):
    """As by a quota: no file may be over 100 kB."""
    arguments = [*PLAIN, *QUIET, f"train.on_save_error={policy}"]
    limited = ("bash", "-c", 'ulimit -f 100; exec "$@"', "bash")
    found = call(tmp_path, *arguments, launcher=limited, status=1)
    run = only_run(tmp_path)
    assert not list((run / "checkpoints").iterdir())
    told = "the checkpoint last.pth could not be written ([Errno 27] File too large"
    if policy == "stop":
        assert found.stderr.startswith(f"Error: Training stopped at step 0: {told}")
        assert found.stderr.count("\n") == 1 and metrics(run) == []
    else:
        assert f"Note: {told}" in found.stdout and len(metrics(run)) == 2
        assert found.stderr.startswith("Error: Training has come to its end, but the checkpoint ")
        assert found.stderr.count("\n") == 1 and not (run / "results.json").exists()
    output = call(tmp_path, *arguments).stdout  # with room again
    assert (run / "results.json").exists() and "continuing" not in output
