"""Which runs a matrix consists of, and how their commands are run, watched and stopped."""

import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils.errors import ConfigError
from utils.runs.access import is_locked, locked
from utils.runs.signals import Interrupted
from utils.settings.command_line import Command
from utils.settings.composition import compose, composed_settings
from utils.settings.identity import run_name
from utils.tasks import cell_runner
from utils.tasks.cell_runner import CellRunner
from utils.tasks.cells import arms, plan

DIGITS = "experiment=digits_ladder"


def command(*overrides):
    overrides = ("task=matrix", *overrides)
    return Command(compose(list(overrides)), overrides)


def name_of(*overrides):
    return run_name(composed_settings(compose(list(overrides))))


def test_a_cell_is_the_run_that_its_settings_name_and_seeds_come_first():
    cells = plan(command(DIGITS, "task.arms=[none,skip]", "task.seeds=[3,4]", "model.num_ch=16"))
    assert [cell.name for cell in cells] == [
        "none, seed 3",
        "skip, seed 3",
        "none, seed 4",
        "skip, seed 4",
    ]
    assert cells[0].folder.name == name_of(DIGITS, "model.num_ch=16", "train.seed=3")
    assert cells[3].folder.name == name_of(DIGITS, "model.num_ch=16", "remedy=skip", "train.seed=4")


def test_all_shipped_arms_fit_and_differ():
    cells = plan(command(DIGITS, "task.seeds=[0]"))
    assert len({cell.folder for cell in cells}) == 9
    assert cells[-1].folder.name == name_of("experiment=digits_dct_ladder", "train.seed=0")


def test_with_crosses_every_arm_once():
    cells = plan(command(DIGITS, "task.seeds=[0]", "task.arms=[none,skip]", "task.with=[context]"))
    assert [cell.arm.label for cell in cells] == ["none", "skip", "context", "context + skip"]
    experiment = ("experiment=digits_dct_ladder", "train.seed=0")
    assert cells[2].folder.name == name_of(*experiment)
    assert cells[3].folder.name == name_of(*experiment, "remedy=skip")


def test_arms_that_are_joined_are_one_and_the_same_run_is_in_the_table_once():
    overrides = ["task.arms=[warmup+skip,skip+warmup,none,none]", "task.seeds=[0,0]"]
    cells = plan(command(DIGITS, *overrides))
    assert [cell.arm.label for cell in cells] == ["warmup + skip", "none"]
    assert cells[0].arm.settings == {
        "model.beta_ramp": "0.3",
        "model.beta_start": "0.0",
        "model.decoder.output": "skip",
    }


def test_an_arm_goes_before_the_commands_own_keys_and_these_before_the_experiment():
    (cell,) = plan(
        command(DIGITS, "task.arms=[skip]", "task.seeds=[0]", "model.decoder.output=aggregate")
    )
    assert cell.folder.name == name_of(DIGITS, "remedy=skip", "train.seed=0")


def test_own_images_and_folders_of_any_name(tmp_path):
    folder = str(tmp_path / "it's [a] folder, = $x")
    images = ["name=mine", "dataset=image_folder", f"dataset.root='{tmp_path}'", "model=ladder"]
    images += ["dataset.image_size=8", "dataset.channels=1", "model.latent_scales=[2]"]
    images += ["model.latent_width=[1]", "task.arms=[none,committed]", "task.seeds=[0]"]
    runs_dir = "runs_dir='" + folder.replace("'", r"\'") + "'"
    cells = plan(command(*images, runs_dir))
    assert {cell.folder.parent for cell in cells} == {Path(folder)}
    composed = composed_settings(compose([*cells[1].arm.overrides, "train.seed=0"]))
    assert run_name(composed) == cells[1].folder.name and composed.runs_dir == folder


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["task.arms=[none,skipp]"],
            r"names 'skipp', which is no remedy: use aggregate, .*context",
        ),
        (["task.with=[../none]"], "names '../none', which is no remedy"),
        (["task.arms=[]"], r"task\.arms=\[\] is not valid: use a list of 1 or more"),
        (["task.seeds=[]"], r"task\.seeds=\[\] is not valid: use a list of 1 or more"),
        (["task.seeds=[-1]"], r"task\.seeds=\[-1\] is not valid"),
        (["task.jobs=-1"], r"task\.jobs=-1 is not valid: use a whole number from 0"),
        (["remedy=skip"], r"remedy=skip is not for task=matrix.*task\.arms"),
        (["task.estimators=[iwae]"], "task.estimators is not a setting here"),
        (
            ["task.arms=[none,committed]", "model/decoder/z_L_prior=ddgm"],
            "The arm committed does not fit this experiment: ",
        ),
        (
            ["task.arms=[free_bits+committed]"],
            r"The arm free_bits \+ committed does not fit .*is never reached",
        ),
        (["task.arms=[none,cyclical]", "train.max_epochs=4"], "The arm cyclical does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(overrides, complaint):
    with pytest.raises(ConfigError, match=complaint) as refused:
        plan(command(DIGITS, *overrides))
    assert "\n" not in str(refused.value)


def test_arms_whose_scores_would_not_compare_are_refused(tmp_path, monkeypatch):
    (tmp_path / "remedy").mkdir()
    (tmp_path / "remedy" / "few.yaml").write_text("model:\n  is_k: 7\n")
    monkeypatch.setattr("utils.tasks.cells._own_configs", lambda: [tmp_path])
    told = r"none would be scored with model.is_k=100 \(.*\), few with model.is_k=7 .* give the"
    with pytest.raises(ConfigError, match=told):
        plan(command(DIGITS, "task.arms=[none,few]", "task.seeds=[0]"))


def test_a_report_counts_while_it_was_made_as_asked():
    paths = ("task.arms=[none]", "task.with=[context]", "task.seeds=[0]")
    estimate = SimpleNamespace(num_samples=100, prior_samples=2, per_context=4)
    bound = SimpleNamespace(images=297)
    report = SimpleNamespace(likelihoods=[estimate], information_images=128, bound=bound)
    report.conditions = {"noise_seed": 0}
    for more, same in (("model.is_k_paths=2", True), ("model.is_k_paths=8", False)):
        cells = plan(command(DIGITS, *paths, more))
        assert cells[1]._as_asked(report) is same and len({cell.folder for cell in cells}) == 2


@pytest.mark.parametrize("experiment", ["experiment=digits_dct_ladder", "name=mine"])
def test_context_needs_a_sibling_experiment(experiment):
    with pytest.raises(ConfigError, match=r"has no sibling .* leave context out"):
        arms(command(experiment))


def test_a_run_is_locked_while_another_process_holds_it(tmp_path):
    assert not is_locked(tmp_path) and not list(tmp_path.iterdir())
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
class Stop(BaseException): pass
def stop(number, frame): raise Stop
signal.signal(signal.SIGTERM, stop)
given = dict(a.lstrip("+").split("=", 1) for a in sys.argv[1:] if "=" in a)
folder = Path(given["runs_dir"])
label = given["label"]
with open(folder / "calls.jsonl", "a") as calls:
    calls.write(json.dumps([label, given.get("train.seed"), given.get("task")]) + "\\n")
try:
    if label == "slow":
        time.sleep(60)
except Stop:
    (folder / "saved").touch()
    sys.exit(75)
if label == "bad":
    print("Error: train/loss is nan at step 3.")
    sys.exit(1)
if label == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(0.2)
for seed in given.get("train.seed", given.get("checkpoint", "")[-2:-1]).split(","):
    (folder / f"{label}-{seed}" / "done").touch()
"""


@dataclass(frozen=True)
class FakeCell:
    """A cell whose command is SCRIPT."""

    label: str
    seed: int
    root: Path
    locked: bool = False

    @property
    def folder(self):
        return self.root / f"{self.label}-{self.seed}"

    @property
    def arm(self):
        overrides = (f"label={self.label}", f"runs_dir={self.root}")
        return SimpleNamespace(label=self.label, overrides=overrides)

    @property
    def name(self):
        return f"{self.label}, seed {self.seed}"

    @property
    def trained(self):
        return (self.folder / "results.json").exists()

    def result(self):
        return (self.folder / "done").exists() or None


class Lines:
    """What the terminal would show."""

    def __init__(self):
        self.shown = []

    def line(self, text):
        self.shown.append(text)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (tmp_path / "run_experiment.py").write_text(SCRIPT)
    monkeypatch.setattr(cell_runner, "ROOT", tmp_path)
    monkeypatch.setattr(cell_runner, "POLL", 0.02)

    def make(*names, jobs=1, launcher=()):
        cells = [FakeCell(label, seed, tmp_path) for label, seed in names]
        for cell in cells:
            cell.folder.mkdir(exist_ok=True)
        return CellRunner(tmp_path / "logs", jobs, launcher, Lines()), cells

    make.calls = lambda: [
        json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()
    ]
    return make


def test_a_cell_that_fails_is_told_and_the_others_go_on(fake, tmp_path):
    runner, cells = fake(("a", 0), ("bad", 0), ("killed", 0), ("b", 0))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "killed-seed0.log").write_text("Error: of the time before\n")
    failed = runner.run(cells, 5.0)
    assert failed["bad, seed 0"] == "train/loss is nan at step 3."
    assert failed["killed, seed 0"].startswith("exit status -9, see ")
    assert len(failed) == 2 and cells[0].result() and cells[3].result()


def test_what_is_there_is_not_made_again_and_what_lacks_its_report_is_only_evaluated(fake):
    runner, cells = fake(("a", 0), ("a", 1), ("a", 2))
    (cells[0].folder / "done").touch()
    (cells[1].folder / "results.json").touch()
    assert runner.run(cells, 5.0) == {}
    assert fake.calls() == [["a", None, "report"], ["a", "2", None]]


def test_jobs_run_at_the_same_time_and_never_more(fake):
    runner, cells = fake(*(("a", seed) for seed in range(6)), jobs=3)
    counts, start = [], runner._start
    runner._start = lambda these: (start(these), counts.append(len(runner.running)))
    assert runner.run(cells, 5.0) == {} and all(cell.result() for cell in cells)
    assert max(counts) == 3


def test_a_launcher_gets_the_seeds_of_an_arm_in_one_command(fake):
    runner, cells = fake(("a", 0), ("b", 0), ("a", 1), ("b", 1), launcher=["hydra/launcher=x"])
    assert runner.run(cells, 5.0) == {}
    assert [call[:2] for call in fake.calls()] == [["a", "0,1"], ["b", "0,1"]]
    assert runner._arguments(cells[:1])[:2] == ["-m", "hydra/launcher=x"]


def test_a_cell_that_another_process_trains_is_waited_for(fake, tmp_path):
    runner, cells = fake(("a", 0), ("b", 0))
    held = FakeCell("a", 0, tmp_path, locked=True)
    threading.Timer(0.6, (held.folder / "done").touch).start()
    threading.Timer(0.7, lambda: object.__setattr__(held, "locked", False)).start()
    assert runner.run([held, cells[1]], 5.0) == {}
    assert [call[0] for call in fake.calls()] == ["b"]  # a was made by the other
    told = [line for line in runner.terminal.shown if line.startswith("Waiting for other")]
    assert told == ["Waiting for other processes that train these: a, seed 0"]


def test_a_signal_is_passed_on_and_nothing_is_left_running(fake, tmp_path):
    runner, cells = fake(("slow", 0), ("slow", 1), ("a", 0), jobs=2)
    started = []

    def stop():
        while len(runner.running) < 2 or len(fake.calls()) < 2:
            time.sleep(0.02)
        started.extend(runner.running)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "calls.jsonl").touch()
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted) as interrupted:
        runner.run(cells, 20.0)
    thread.join()
    assert interrupted.value.status == 75 and (tmp_path / "saved").exists()
    assert [each.process.returncode for each in started] == [75, 75]
    assert not cells[2].result()
