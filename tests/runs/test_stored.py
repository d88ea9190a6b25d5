"""What a run's folder tells, and what a damaged one of its small files costs: never another run."""

import shutil

import pytest

from tests.runs.test_checkpoint import step_state
from tests.runs.test_runs import folder
from utils.errors import ConfigError
from utils.runs.folder import RunFolder
from utils.runs.stored import expand_pattern, find_run, read_run

pytestmark = pytest.mark.usefixtures("own_log")
DAMAGED = ("", '{"wand', "5", "[]", '{"wandb_id": 5}', "[" * 100_000, "\0\xff")


def trained(tmp_path, *overrides) -> RunFolder:
    """A run with a checkpoint."""
    run = folder(tmp_path, *overrides)
    with run.opened(start_over=False):
        run.save("last", step_state(1))
    return run


def test_a_damaged_id_costs_no_run_anything(tmp_path):
    run = trained(tmp_path)
    (tmp_path / "a").mkdir()
    wandb_id, settings = run.wandb_id, run.config
    for text in DAMAGED:
        (tmp_path / "a" / "run.json").write_text(text, encoding="latin-1")
        assert find_run(str(tmp_path), wandb_id) == (settings, [run.path])
        run.record.write_text(text, encoding="latin-1")  # its checkpoint knows it
        assert find_run(str(tmp_path), wandb_id) == (settings, [run.path])
        assert read_run(run.path) == (run.path, settings, wandb_id)
        with run.opened(start_over=False):
            assert run.wandb_id == wandb_id
        with pytest.raises(ConfigError, match="is not the folder of a run"):
            read_run(tmp_path / "a")


def test_an_id_of_two_runs_is_not_guessed(tmp_path):
    run, other = trained(tmp_path), trained(tmp_path, "train.seed=7")
    shutil.copytree(run.path, tmp_path / "a copy")
    assert find_run(str(tmp_path), run.wandb_id) == (run.config, [tmp_path / "a copy", run.path])
    shutil.copy(run.record, other.record)
    with pytest.raises(ConfigError, match=f"{run.wandb_id} is the id of two runs, .* its own comm"):
        find_run(str(tmp_path), run.wandb_id)


def test_the_environment_gives_no_two_runs_one_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "given")
    run = folder(tmp_path)
    for _ in range(2):  # again after it was set aside
        with run.opened(start_over=run.path.exists()):
            assert run.wandb_id == "given"
    other = folder(tmp_path, "train.seed=7")
    with (
        pytest.raises(ConfigError, match=r"WANDB_RUN_ID=given .* of another run already, .*unset"),
        other.opened(start_over=False),
    ):
        pass
    monkeypatch.delenv("WANDB_RUN_ID")
    with other.opened(start_over=False):
        assert other.wandb_id != "given"


def test_a_name_that_is_there_is_no_pattern(tmp_path, monkeypatch):
    for name in ("q[1]", "q1", "q2"):
        (tmp_path / name).mkdir()
    assert expand_pattern(f"{tmp_path}/q[1]") == [f"{tmp_path}/q[1]"]
    assert expand_pattern(f"{tmp_path}/q[2]") == [f"{tmp_path}/q2"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_pattern("~/q?") == [f"{tmp_path}/q1", f"{tmp_path}/q2"]


@pytest.mark.parametrize("text", [None, "a: [", "\x80\xff", "!!bool x", '!!int ""'])
def test_settings_that_cannot_be_read_are_named_with_the_remedy(tmp_path, text):
    run = trained(tmp_path)
    path = run.path / "config.yaml"
    path.unlink() if text is None else path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"is missing or damaged .* which writes it anew") as told:
        find_run(str(tmp_path), run.wandb_id)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


def test_a_folder_that_goes_while_the_run_is_open(tmp_path):
    run = folder(tmp_path)

    def written_nowhere():
        for write in (lambda: run.save("last", step_state(1)), lambda: run.finish({"a": 1}, {})):
            with pytest.raises(OSError, match="was removed or renamed while this run was writing"):
                write()

    with run.opened(start_over=False):
        run.path.rename(tmp_path / "aside")
        written_nowhere()
        assert not run.path.exists()
        shutil.copytree(tmp_path / "aside", run.path)  # another process has begun the run anew
        written_nowhere()
        assert not list(run.checkpoints.iterdir()) and not run.results.exists()


def test_a_runs_dir_that_cannot_hold_it_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    run = folder(tmp_path / "file")
    with (
        pytest.raises(ConfigError, match=r"runs_dir=.*file cannot hold .*set another runs_dir="),
        run.opened(start_over=False),
    ):
        pass
