"""A run's folder: one process at a time, nothing lost when it starts anew."""

import json
import subprocess
import sys
import warnings

import pytest
import yaml

from tests.conftest import ROOT, compose
from utils.errors import ConfigError
from utils.processes.launch import Processes
from utils.runs.access import locked
from utils.runs.folder import RunFolder

pytestmark = pytest.mark.usefixtures("own_log")


def folder(tmp_path, *overrides, processes=None) -> RunFolder:
    """The folder of a digits run."""
    settings = compose("digits_ladder", f"runs_dir={tmp_path}", *overrides)
    return RunFolder(settings, processes or Processes())


def test_a_second_process_is_told_to_wait(tmp_path):
    first, second = folder(tmp_path), folder(tmp_path)
    with first.opened(start_over=False):
        with (
            pytest.raises(ConfigError, match="is being trained by another process"),
            second.opened(start_over=False),
        ):
            pass
        with folder(tmp_path, "train.seed=7").opened(start_over=False):
            pass
    with second.opened(start_over=False):
        assert second.wandb_id == first.wandb_id


def test_a_killed_process_gives_its_lock_up(tmp_path):
    program = "import sys, time; from pathlib import Path; from utils.runs.access import locked\n"
    program += "lock = locked(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(ConfigError, match="is being trained by another process"):
            locked(tmp_path)
        process.kill()
    with locked(tmp_path):
        pass


def test_starting_anew_keeps_the_old_folder(tmp_path):
    run = folder(tmp_path)
    for mark in ("one", "two", "three"):
        with run.opened(start_over=run.results.exists()):
            run.finish({"mark": mark}, {})
    marks = {p.name: json.loads((p / "results.json").read_text()) for p in tmp_path.iterdir()}
    assert marks[run.name] == {"mark": "three"}
    assert marks[f"{run.name}.old1"] == {"mark": "one"}
    assert marks[f"{run.name}.old2"] == {"mark": "two"}


def test_the_log_has_warnings_and_the_error_that_ended_it(tmp_path):
    run = folder(tmp_path)
    with pytest.raises(RuntimeError), run.opened(start_over=False):
        warnings.warn("something odd", stacklevel=1)
        raise RuntimeError("the end")
    text = (run.path / "run.log").read_text()
    assert "something odd" in text and "RuntimeError: the end" in text


def test_no_secret_is_written(tmp_path):
    run = folder(tmp_path, "wandb.api_key=planted-key")
    with run.opened(start_over=False):
        pass
    for path in run.path.rglob("*"):
        assert not path.is_file() or b"planted-key" not in path.read_bytes()
    assert yaml.safe_load((run.path / "config.yaml").read_text())["wandb"]["api_key"] is None


def test_other_processes_write_nothing(tmp_path):
    main = folder(tmp_path)
    other = folder(tmp_path, processes=Processes(rank=1, world=2))
    with main.opened(start_over=False), other.opened(start_over=False):
        other.save("last", {})
        other.finish({}, {})
    assert not list(main.checkpoints.iterdir()) and not main.results.exists()
