"""A run's folder: one process at a time, nothing lost when it starts anew."""

import json
import subprocess
import sys
import time
import warnings

import pytest
import yaml

from tests.conftest import ROOT, compose
from tests.training.trainers import make_trainer
from utils.errors import ConfigError
from utils.processes.launch import Processes
from utils.runs import checkpoints
from utils.runs.access import locked
from utils.runs.folder import RunFolder
from utils.settings.extension import extended
from utils.terminal import Terminal
from utils.tracking.sinks import Sink
from utils.tracking.tracker import open_tracker

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


class Events(Sink):
    """Lists what reaches a tracker."""

    def __init__(self):
        self.events = []

    def log(self, values, epoch, step):
        """Nothing."""

    def checkpoint(self, name, path, metadata):
        """A checkpoint has been written."""
        self.events.append(f"{name} written at step {metadata['step']}")

    def close(self, failed):
        """The tracker is closed."""
        self.events.append("closed")


@pytest.mark.parametrize("disk", ["slow", "full"])
def test_lock_and_tracker_outlive_what_is_written_when_training_fails(
    tmp_path, monkeypatch, capsys, disk
):
    run, trainer, sink = folder(tmp_path), make_trainer(tmp_path), Events()
    save, step = checkpoints.save, trainer.train_step

    def late(path, *args):
        if trainer.progress.step == 0:
            return save(path, *args)
        time.sleep(0.3)
        with pytest.raises(ConfigError, match="is being trained"):
            locked(run.path)
        if disk == "full":
            raise OSError(28, "No space left on device")
        return save(path, *args)

    def failing(*args):
        step(*args)
        trainer.checkpointer.save("last")
        raise RuntimeError("after the first step")

    monkeypatch.setattr(checkpoints, "save", late)
    wandb = compose("digits_ladder", "wandb.setup.mode=disabled").wandb
    trainer.train_step, trainer.terminal = failing, Terminal()
    trainer.checkpointer.terminal = trainer.terminal
    with (
        pytest.raises(RuntimeError, match="after the first step"),
        run.opened(start_over=False),
        open_tracker(wandb, run, trainer.model, trainer.terminal, [lambda path: sink]) as tracker,
    ):
        trainer.checkpointer.saver = run.saver(tracker)
        trainer.fit()
    written = ["last written at step 0", "last written at step 1"]
    assert sink.events == [*(written if disk == "slow" else written[:1]), "closed"]
    told = "Note: the checkpoint last.pth could not be written ([Errno 28] No space left on device)"
    assert (told in capsys.readouterr().out) == (disk == "full")


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


def finished(tmp_path, *overrides) -> RunFolder:
    """A run with results."""
    run = folder(tmp_path, *overrides)
    with run.opened(start_over=False):
        run.finish({}, {})
    return run


def test_a_run_is_cut_short_between_its_scores_and_the_end(tmp_path):
    run = finished(tmp_path)
    assert not run.cut_short  # nothing to go on from
    run.last.touch()
    assert run.cut_short
    run.results.unlink()
    assert not run.cut_short
    run.results.touch()
    run.conclude()
    assert not run.cut_short


def test_only_a_finished_run_that_nobody_works_in_is_put_aside(tmp_path):
    run, other = finished(tmp_path), folder(tmp_path)
    aside = run.path.with_name(f"{run.name}.old1")
    with (
        locked(run.path),  # as while its report is written
        pytest.raises(ConfigError, match="is being trained by another process"),
        other.opened(start_over=True),
    ):
        pass
    assert run.results.exists() and not aside.exists()
    with other.opened(start_over=True):
        assert (aside / "results.json").exists() and not other.results.exists()
        with (
            pytest.raises(ConfigError, match="is being trained by another process"),
            folder(tmp_path).opened(start_over=True),  # which saw the results before
        ):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [run.name, aside.name]


def test_a_run_trained_longer_does_not_begin_anew(tmp_path):
    settings = extended(compose("digits_ladder", f"runs_dir={tmp_path}"), 90)
    longer = RunFolder(settings, Processes())
    with (
        pytest.raises(ConfigError, match=r"task.force=true would .* went on from 60 epochs: leave"),
        longer.opened(start_over=True),
    ):
        pass
