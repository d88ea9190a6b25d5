"""Evaluations as W&B runs of their own: what they show, what they are of, and trouble with W&B."""

import json
import shutil
import subprocess

import pytest
import torch

from tests.commands import COMMAND, ONLINE, OWN_DATA, PLAIN, connected, only_run
from tests.tracking.wandb_server import ENTITY, WandbServer
from utils.errors import ConfigError
from utils.processes.launch import Processes
from utils.report.figure_tables import shown_table
from utils.settings.command_line import Command
from utils.settings.composition import compose
from utils.table import Cell, Column, Table, number, with_error
from utils.tasks.recorder import Recorder

RECORD = ["wandb.record=true", "task.noise_seed=0"]
FEW = ["task.estimators=[iwae]", "model.is_k=2", OWN_DATA]
PROJECT = f"{ENTITY}/dct_ladder_vae"


def recorder(*overrides, **processes):
    """Of a command."""
    overrides = ("task=test", *overrides)
    return Recorder(Command(compose(list(overrides)), overrides), Processes(**processes))


def test_nothing_is_recorded_unless_asked_for_and_by_one_process_only(tmp_path):
    def never():
        raise AssertionError("made")

    for one in (recorder(), recorder("wandb.record=true", rank=1, world=2)):
        one.record(tmp_path, None, never)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["wandb.record=5", "wandb.setup.mode=on", "+wandb.rec=1"])
def test_a_wrong_setting_is_refused_before_any_work(wrong):
    with pytest.raises(ConfigError, match=wrong.strip("+").partition("=")[0]):
        recorder(wrong)


def test_trouble_in_the_making_costs_a_line(tmp_path):
    lines = []
    terminal = type("Terminal", (), {"line": lambda self, text: lines.append(text)})()
    recorder("wandb.record=true").record(tmp_path, terminal, lambda: 1 / 0)
    assert lines == ["The evaluation is not recorded for W&B: division by zero"]
    recorder("wandb.record=true", "wandb.setup.mode=disabled").record(tmp_path, terminal, None)
    assert lines[1] == "wandb.record=true records nothing with wandb.setup.mode=disabled."


def test_a_pages_table_has_numbers_where_it_shows_numbers():
    columns = [Column("a", text=True), Column("95 %"), Column("b"), Column("95 % "), Column("c")]
    cells = [Cell("x"), Cell("1 – 2", 1.0), number(1234.5), with_error(-1.0, 0.5), Cell("–")]
    table = shown_table("shown", Table("", columns, [cells, cells]))
    assert table.columns == ["a", "95 %", "b", "95 % (3)", "c"]
    assert table.rows == [["x", "1 – 2", 1234.5, "−1.00 ± 0.50", None]] * 2
    absent = [[number(3.0)], [Cell("", -1)], [Cell("–", -1)]]  # which sort before all numbers
    assert shown_table("shown", Table("", [Column("kl")], absent)).rows == [[3.0], [None], [None]]


@pytest.fixture(scope="module")
def server():
    """The server, for all tests here."""
    with WandbServer() as running:
        yield running


def command(server, folder, *arguments, **variables):
    """The command, with an account at the server: when it has ended."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**connected(server, folder), **variables},
        capture_output=True,
        text=True,
        timeout=400,
    )


def run(server, folder, *arguments, status=0, **variables):
    """The same; what it printed."""
    found = command(server, folder, *arguments, **variables)
    assert found.returncode == status and not found.stderr, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def logged(server, tmp_path_factory):
    """(its folder, W&B id) of one small run that was logged online."""
    folder = tmp_path_factory.mktemp("logged")
    run(server, folder, *ONLINE, "task.report=false", "wandb.setup.mode=online")
    (identity,) = server.runs
    return only_run(folder), identity


def evaluation(server, job_type, before=()):
    """The one run of this job type at W&B that was not there before; it has come to its end."""
    found = [r for r in server.runs.values() if r.job_type == job_type and r.id not in before]
    assert len(found) == 1 and found[0].state == "finished"
    return found[0]


def used(mirrored):
    """The artifacts that a run names as its inputs."""
    return [f"{artifact.collection}:{artifact.version}" for artifact in mirrored.used]


def table_names(server, mirrored):
    """Of the tables that a run has, whole."""
    names = [a.name for a in server.artifacts if a.type == "run_table" and a.version == "v0"]
    mine = f"run-{mirrored.id}-"
    return {name.removeprefix(mine) for name in names if name.startswith(mine)}


@pytest.mark.slow
def test_a_test_is_an_eval_run_of_the_model(server, logged, tmp_path):
    path, identity = logged
    before = set(server.runs)
    output = run(server, tmp_path, "task=test", f"checkpoint={path}", *FEW)
    assert set(server.runs) == before and "W&B" not in output  # unless it is asked for
    output = run(server, tmp_path, "task=test", f"checkpoint={path}", *FEW, *RECORD)
    mirrored = evaluation(server, "eval")
    assert f"is at W&B as {PROJECT}/{mirrored.id}\n" in output and "lineage" not in output
    scores = json.loads((path / "test_scores.json").read_text())
    assert mirrored.summary["test/nelbo"] == scores["bound"]["nelbo"]
    assert mirrored.config["model"] == scores["config"]["model"]
    assert mirrored.group == "digits_ladder" and mirrored.display_name.startswith("test (test) of")
    assert used(mirrored) == [f"{PROJECT}/{identity}-best:v0"]
    assert table_names(server, mirrored) == {"test_layers", "test_images"}
    assert not list(path.glob("wandb/evaluations/*"))
    assert server.runs[identity].used == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "-last:latest"])
def test_a_model_named_at_wandb_is_its_lineage(server, logged, tmp_path, name):
    _, identity = logged
    before, source = set(server.runs), f"{PROJECT}/{identity}{name}"
    run(server, tmp_path, "task=test", f"checkpoint={source}", *FEW, *RECORD)
    mirrored = evaluation(server, "eval", before)
    expected = source.removesuffix(":latest") if name else f"{source}-best"
    assert used(mirrored) == [f"{expected}:v0"]


@pytest.mark.slow
def test_a_report_a_comparison_and_foreign_images_too(server, logged, tmp_path):
    path, identity = logged
    source, before = f"checkpoint={path}", set(server.runs)
    here = f"task.output={tmp_path}/here"
    run(server, tmp_path, "task=report", source, *FEW, *RECORD, "task.mi_images=3", here)
    mirrored = evaluation(server, "report", before)
    (page,) = [name for name in mirrored.files if name.startswith("media/html/report")]
    assert mirrored.files[page] == (tmp_path / "here/report/report.html").read_bytes()
    pictures = [path.read_bytes() for path in (tmp_path / "here").glob("report/*.png")]
    assert len(pictures) > 5 and set(pictures) <= set(mirrored.files.values())
    assert used(mirrored) == [f"{PROJECT}/{identity}-best:v0"]

    foreign = ["task=ood", "ood.dataset=digits", "ood.invert=true", "task.num_images=20"]
    run(server, tmp_path, *foreign, source, *FEW[1:], *RECORD, here)
    mirrored = evaluation(server, "ood", before)
    record = json.loads((tmp_path / "here/ood.json").read_text())
    assert mirrored.summary["ood/auroc/ELBO"] == record["detections"][1]["auroc"]["value"]
    assert table_names(server, mirrored) == {"ood"} and len(used(mirrored)) == 1

    other = tmp_path / "other.pth"  # of no run
    content = torch.load(path / "checkpoints" / "last.pth", weights_only=True)
    content["config"]["train"]["seed"] += 1
    torch.save(content, other)
    runs = ["task=compare", f"runs=[{path},{other}]", *FEW]
    said = run(server, tmp_path, *runs, *RECORD, here)
    mirrored = evaluation(server, "compare", before)
    assert used(mirrored) == [f"{PROJECT}/{identity}-best:v0"]
    assert f"without its lineage: W&B has no such file as {other}" in said
    assert table_names(server, mirrored) == {"means", "layers"}  # one group, of two seeds


@pytest.mark.slow
def test_a_model_that_wandb_has_not_got_is_recorded_without_lineage(server, logged, tmp_path):
    before, path = set(server.runs), tmp_path / "copy.pth"
    shutil.copy(logged[0] / "checkpoints" / "best.pth", path)
    output = run(server, tmp_path, "task=test", f"checkpoint={path}", *FEW, *RECORD)
    mirrored = evaluation(server, "eval", before)
    told = f"/{mirrored.id}, without its lineage: W&B has no such file as {path}\n"
    assert told in output and mirrored.used == []


@pytest.mark.slow
def test_a_matrix_is_a_run_of_its_runs(server, tmp_path):
    before = set(server.runs)
    arms = ["task=matrix", "task.arms=[none,skip]", "task.seeds=[0]", "task.mi_images=3"]
    run(server, tmp_path, *arms, *PLAIN, "train.max_epochs=1", *RECORD)
    mirrored = evaluation(server, "matrix", before)
    trained = [r.id for r in server.runs.values() if r.job_type == "train" and r.id not in before]
    assert sorted(used(mirrored)) == sorted(f"{PROJECT}/{one}-best:v0" for one in trained)
    assert len(trained) == 2 and table_names(server, mirrored) == {"verdicts", "runs"}


@pytest.mark.slow
def test_what_was_evaluated_offline_is_uploaded_with_its_run(server, tmp_path):
    """The models first, so that the evaluations find them; afterwards nothing waits."""
    before = set(server.runs)
    offline = "wandb.setup.mode=offline"
    run(server, tmp_path, *ONLINE, "task.report=false", offline, "train.seed=3")
    path = only_run(tmp_path)
    for name in ("test", "report"):
        asked = [f"task={name}", f"checkpoint={path}", *FEW, *RECORD, offline]
        asked += ["task.mi_images=3"] if name == "report" else ["wandb.save_code=true"]
        output = run(server, tmp_path, *asked)
        assert f"Recorded for W&B offline; task=sync run={path} uploads it." in output
    assert set(server.runs) == before and len(list(path.glob("wandb/evaluations/*"))) == 2
    output = run(server, tmp_path, "task=sync", f"run={path}")
    assert output.count(" is at W&B as ") == 3 and "lineage" not in output
    identity = json.loads((path / "run.json").read_text())["wandb_id"]
    for job_type in ("eval", "report"):
        mirrored = evaluation(server, job_type, before)
        assert used(mirrored) == [f"{PROJECT}/{identity}-best:v0"]
        assert table_names(server, mirrored) == {"test_layers", "test_images"}
        assert mirrored.summary["test/nelbo"] > 0
    assert [a.type for a in server.artifacts].count("code") == 1
    assert not list(path.glob("wandb/evaluations/*"))
    sent = len(server.requests)
    run(server, tmp_path, "task=sync", f"run={path}")
    assert not any(r.path.startswith("/artifact-files") for r in server.requests[sent:])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["away", "lost", "uploads"])
def test_trouble_with_wandb_costs_an_evaluation_nothing(server, logged, tmp_path, fault):
    before, path = set(server.runs), logged[0]
    arguments = ["task=test", f"checkpoint={path}", *FEW, *RECORD, "task.output=here"]
    with WandbServer() as another:
        if fault == "lost":
            another.fail(500, path=lambda request: "file_stream" in request.path)
        elif fault == "uploads":
            another.fail(403, path=lambda request: request.method == "PUT")
        if fault != "away":
            output = run(another, tmp_path, *arguments, "wandb.setup.mode=online")
    if fault == "away":
        output = run(another, tmp_path, *arguments, "wandb.setup.mode=online")
    assert "W&B (mode online) has not got the evaluation: " in output
    assert "Recorded for W&B offline; task=sync run=here uploads it." in output
    assert json.loads((tmp_path / "here/test_scores.json").read_text())["split"] == "test"
    output = run(server, tmp_path, "task=sync", "run=here")
    mirrored = evaluation(server, "eval", before)
    assert f"is at W&B as {PROJECT}/{mirrored.id}\n" in output and len(used(mirrored)) == 1


@pytest.mark.slow
def test_an_upload_that_is_refused_keeps_the_evaluation(server, logged, tmp_path):
    before, path = set(server.runs), logged[0]
    offline = ["wandb.setup.mode=offline", "task.output=here"]
    run(server, tmp_path, "task=test", f"checkpoint={path}", *FEW, *RECORD, *offline)
    (waiting,) = tmp_path.glob("here/wandb/evaluations/*")
    with WandbServer() as another:
        another.fail(403)
        found = command(another, tmp_path, "task=sync", "run=here")
    assert found.returncode == 1 and found.stderr.count("\n") == 1
    assert f"The evaluation in {waiting.relative_to(tmp_path)} has not arrived" in found.stderr
    state = (waiting / "evaluation.json").read_text()
    (waiting / "evaluation.json").write_text("{}")
    found = command(server, tmp_path, "task=sync", "run=here")
    assert found.returncode == 1 and "is damaged: remove its folder." in found.stderr
    (waiting / "evaluation.json").write_text(state)
    run(server, tmp_path, "task=sync", "run=here")
    evaluation(server, "eval", before)
    assert not waiting.exists()
