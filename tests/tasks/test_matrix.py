"""task=matrix as a user runs it: real runs, stopped, continued, failing, and the page of them."""

import json
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest

from tests.commands import COMMAND, PLAIN, call, environment, metrics
from utils.errors import ConfigError
from utils.runs.access import is_locked
from utils.tasks.matrix import matrix

TASK = ["task=matrix", "task.mi_images=3", "wandb.setup.mode=disabled", *PLAIN]
TASK += ["train.eval_freq=1", "train.max_epochs=1"]


def stamps(folder):
    """When each run's training and report were finished."""
    paths = [*folder.glob("runs/*/results.json"), *folder.glob("runs/*/report/report.json")]
    return {path: path.stat().st_mtime_ns for path in paths}


def results(run):
    """A run's scores, without what a clock or a path decides."""
    record = json.loads((run / "results.json").read_text())
    changing = ("seconds", "checkpoint", "checkpoint_digest", "config")
    return {key: value for key, value in record.items() if key not in changing}


def test_it_starts_its_runs_itself():
    with pytest.raises(
        ConfigError, match=r"start it once, without .* task\.jobs=… or hydra/launch"
    ):
        matrix(None, SimpleNamespace(world=2, launcher="mpiexec"))


@pytest.mark.slow
def test_arms_and_seeds_then_one_page(tmp_path):
    arguments = [*TASK, "task.arms=[none,skip]", "task.seeds=[0,1]", "task.jobs=2"]
    found = call(tmp_path, *arguments, timeout=600)
    page = tmp_path / "runs" / "matrix-digits_ladder" / "matrix.html"
    assert "4 runs, 2 at a time" in found.stdout and f"The matrix is {page}" in found.stdout
    content = json.loads(page.with_suffix(".json").read_text())
    assert [(cell["arm"], cell["seed"]) for cell in content["cells"]] == [
        ("none", 0),
        ("none", 1),
        ("skip", 0),
        ("skip", 1),
    ]
    before = stamps(tmp_path)
    assert len(before) == 8
    found = call(tmp_path, *arguments)  # nothing is left to do
    assert stamps(tmp_path) == before and "training" not in found.stdout

    # what lost its report, or is asked for other figures, is evaluated, and not trained
    run = tmp_path / "runs" / content["cells"][2]["run"]
    (run / "report" / "report.json").write_text("{")
    call(tmp_path, *arguments)
    after = stamps(tmp_path)
    assert [path for path in after if after[path] != before[path]] == [run / "report/report.json"]
    call(tmp_path, *arguments, "task.mi_images=4", timeout=600)
    renewed = json.loads(page.with_suffix(".json").read_text())
    assert renewed["information_images"] == 4
    assert [arm["means"]["nll"] for arm in renewed["arms"]] == [
        arm["means"]["nll"] for arm in content["arms"]
    ]
    assert [path.name for path in stamps(tmp_path) if stamps(tmp_path)[path] == after[path]] == [
        "results.json"
    ] * 4

    # a cell is the run that the command for it alone makes
    alone = tmp_path / "alone"
    alone.mkdir()
    own = [a for a in TASK if not a.startswith("task")]
    call(alone, *own, "remedy=skip", "train.seed=0", "task.estimators=[iwae]", "task.report=false")
    assert metrics(alone / "runs" / run.name) == metrics(run)
    assert results(alone / "runs" / run.name) == results(run)


@pytest.mark.slow
def test_through_a_launcher_of_hydras(tmp_path):
    arguments = [*TASK, "task.arms=[none,skip]", "task.seeds=[0,1]"]
    call(tmp_path, *arguments, "hydra/launcher=basic", timeout=600)
    assert len(stamps(tmp_path)) == 8
    logs = sorted(path.name for path in tmp_path.glob("runs/matrix-digits_ladder/logs/*"))
    assert logs == ["none-seed0-1.log", "skip-seed0-1.log"]


@pytest.mark.slow
def test_a_run_that_fails_is_missing_on_the_page_and_the_others_are_there(tmp_path):
    (tmp_path / "mine" / "remedy").mkdir(parents=True)
    content = "# @package _global_\ntrain:\n  grad_skip_thr: 1.0e-9\n  max_skipped_steps: 1\n"
    (tmp_path / "mine" / "remedy" / "stuck.yaml").write_text(content)
    arguments = ["--config-dir", "mine", *TASK, "train.max_epochs=3"]
    arguments += ["task.arms=[none,stuck]", "task.seeds=[0]"]
    found = call(tmp_path, *arguments, status=1, timeout=600)
    (error,) = [line for line in found.stderr.splitlines() if line.startswith("Error: ")]
    assert error.startswith("Error: 1 of 2 runs failed: stuck, seed 0 (")
    assert "1 steps in a row were skipped" in error
    page = (tmp_path / "runs" / "matrix-digits_ladder" / "matrix.html").read_text()
    assert "1 more runs are missing" in page and "seed 0, stuck: " in page


@pytest.mark.slow
def test_a_matrix_that_is_stopped_goes_on_where_it_was(tmp_path):
    arguments = [*TASK, "task.arms=[none,skip]", "task.seeds=[0]", "train.max_epochs=40"]
    matrix_log = tmp_path / "log"
    with open(matrix_log, "w") as log:
        started = subprocess.Popen(
            [*COMMAND, *arguments], cwd=tmp_path, env=environment(tmp_path), stdout=log, stderr=log
        )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(path.read_text().count("\n") >= 3 for path in tmp_path.glob("runs/*/metrics.jsonl")):
            break
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 75, matrix_log.read_text()
    (run,) = [path.parent for path in tmp_path.glob("runs/*/metrics.jsonl")]
    assert not (run / "results.json").exists() and (run / "checkpoints/last.pth").exists()
    assert not is_locked(run)
    done = len(metrics(run))
    call(tmp_path, *arguments, timeout=900)
    text = (run / "run.log").read_text()
    assert f"continuing at epoch {done + 1}" in text or f"continuing at epoch {done}" in text
    assert [row["epoch"] for row in metrics(run)] == list(range(1, 41))
    assert len(stamps(tmp_path)) == 4
