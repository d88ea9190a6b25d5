"""What is written stays in the run's own folder: links that others put there lead nowhere."""

import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.conftest import compose
from tests.runs.test_checkpoint import step_state
from utils.errors import ConfigError
from utils.files import copy_file
from utils.processes.launch import Processes
from utils.report.drawing import Drawing, save
from utils.report.page import write_page
from utils.runs.access import INNER, check_no_links, results_folder
from utils.runs.folder import RunFolder
from utils.tracking.sinks import METRICS, LocalSink

REFUSED = ("run.log", ".lock", METRICS)  # are appended to, or held; the rest is replaced
WRITTEN = (
    "config.yaml",
    "results.json",
    "results.npz",
    "figures/plot.png",
    "report/report.html",
    "checkpoints/last.pth",
    "checkpoints/last.previous.pth",
    "checkpoints/manifest.json",
)
PREDICTABLE = [*(f"{name}.partial" for name in WRITTEN), "checkpoints/last.previous.partial"]


@pytest.fixture
def run(tmp_path, own_log) -> RunFolder:
    """A run that has been opened once before, in a runs_dir that is a link of the user's own."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    found = RunFolder(compose("digits_ladder", f"runs_dir={tmp_path / 'runs'}"), Processes())
    with found.opened(start_over=False):
        pass
    return found


def write_everything(run: RunFolder) -> None:
    """What a run writes, from its start to its report."""
    with run.opened(start_over=False):
        for step in (1, 2, 3):
            run.save("last", step_state(step))
        LocalSink(run.path / METRICS).log({"a": 1.0}, epoch=1, step=3)
        save(Drawing("plot", Figure(), ""), run.figures)
        run.finish({"a": 1}, {"a": np.zeros(3)})
        write_page(run.path / "report" / "report.html", "title", [], [])


def planted(link: Path, target: Path) -> Path:
    """A link in a file's or folder's place."""
    link.parent.mkdir(exist_ok=True)
    if link.exists():
        link.rename(f"{target}-{link.name}-before")
    link.symlink_to(target)
    return link


def test_a_link_in_a_files_place_is_not_written_through(run, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    for names in ([*WRITTEN, *PREDICTABLE], ["run.json"]):
        for name in names:
            planted(run.path / name, precious)
        write_everything(run)
    for name in (*WRITTEN, "run.json"):
        assert (run.path / name).is_file() and not (run.path / name).is_symlink()
    for name in REFUSED:
        link = planted(run.path / name, precious)
        with pytest.raises(OSError, match=f"{name} could not be written .*symbolic link.*remove"):
            write_everything(run)
        link.unlink()
    assert precious.read_text() == "precious"


def test_a_folder_that_leads_elsewhere_is_refused(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in (*INNER, "ood_digits", "latents_test", ""):
        link = planted(run.path / name, outside)
        with pytest.raises(ConfigError, match="is a symbolic link, so nothing was written") as told:
            write_everything(run)
        assert str(link) in str(told.value) and not list(outside.iterdir())
        with pytest.raises(ConfigError, match=r"name a folder by task\.output="):
            results_folder(None, run.path)
        assert results_folder(str(link), run.path) == link  # named by the user
        link.unlink()


def test_nothing_is_shared_through_a_link(run, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    logs = run.path / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "secret.txt")  # as W&B itself makes them
    (run.path / "wandb" / "latest-run").symlink_to("offline-run-1")
    check_no_links(run.path)
    for name in ("results.npz", "figures/a.png", "report/logs/report.html", "report/pictures"):
        link = run.path / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / "secret.txt")
        with pytest.raises(ConfigError, match=f"{name} is a symbolic link out of its folder"):
            check_no_links(run.path)
        link.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
@pytest.mark.parametrize("name", ["", "checkpoints"])
def test_a_folder_of_another_user_is_refused(run, name):
    os.chown(run.path / name, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to another user, so nothing was written"):
        write_everything(run)


def test_a_disk_that_shows_one_owner_for_all_is_ones_own(run, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 12345)  # and files are made as the tests' user's
    write_everything(run)


def test_files_may_be_read_by_whom_the_user_lets(tmp_path):
    (tmp_path / "plain").write_text("")
    made = copy_file(tmp_path / "plain", tmp_path / "made")
    assert made.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_killed_processes_left_goes(run):
    stale, fresh = Path("report/report.html.aa.partial"), Path("results.json.bb.partial")
    checkpoint = Path("checkpoints/last.pth.cc.partial")
    for name in (stale, fresh, checkpoint):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text("half")
    os.utime(run.path / stale, (1, 1))
    write_everything(run)
    assert not (run.path / stale).exists() and not (run.path / checkpoint).exists()
    assert (run.path / fresh).exists()  # another process may be writing it
