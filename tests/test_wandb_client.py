"""W&B by its real client, against a server of our own on this machine."""

import json
import subprocess
import sys

import pytest
import torch

from tests.commands import COMMAND, ONLINE, connected, only_run
from tests.wandb_server import API_KEY, ENTITY, WandbServer

FETCH = """
import sys
from pathlib import Path
from utils.wandb_client import fetch
try:
    print(fetch(sys.argv[1], Path("cache"), []))
except ValueError as error:
    print("Error:", error)
"""


@pytest.fixture(scope="module")
def server():
    """The server, for all tests here."""
    with WandbServer() as running:
        yield running


@pytest.fixture(autouse=True)
def well(server):
    """Faults end with their test."""
    yield
    server.clear_faults()


def run(server, folder, command, *arguments):
    """A process that knows the server; its output."""
    found = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=connected(server, folder),
        capture_output=True,
        text=True,
        timeout=240,
    )
    return found


@pytest.fixture(scope="module")
def logged(server, tmp_path_factory):
    """(folder, W&B name) of one small run that was logged online."""
    folder = tmp_path_factory.mktemp("logged")
    tags = ["wandb.tags=[small,plain]", "wandb.notes=a test", "wandb.tensorboard=true"]
    found = run(server, folder, COMMAND, *ONLINE, *tags)
    assert found.returncode == 0 and found.stderr == "", found.stdout + found.stderr
    (identity,) = server.runs
    return folder, f"{ENTITY}/dct_ladder_vae/{identity}"


def test_a_run_is_mirrored(server, logged):
    """Figures, pictures, the page, settings without secrets."""
    folder, name = logged
    mirrored, local = server.run(name.rpartition("/")[2]), only_run(folder)
    (row,) = [row for row in mirrored.history if "val/nelbo" in row]
    kept = json.loads((local / "metrics.jsonl").read_text())
    assert {key: row[key] for key in kept} == kept
    scores = json.loads((local / "results.json").read_text())
    assert mirrored.summary["test/nelbo"] == scores["bound"]["nelbo"]
    assert mirrored.summary["parameters/encoder"] > 1000
    assert any(key.startswith("collapse/log_variance_") for row in mirrored.history for key in row)
    assert any(path.startswith("media/html/report") for path in mirrored.files)
    for picture in ("samples", "reconstructions", "kl_maps", "interventions"):
        assert any(path.startswith(f"media/images/figures/{picture}_") for path in mirrored.files)
    text = json.dumps(mirrored.config)
    assert '"num_ch"' in text and API_KEY not in text
    assert mirrored.tags == ["small", "plain"]
    assert list((local / "tensorboard").glob("events.out.tfevents.*"))


def test_checkpoints_are_there_whole(server, logged):
    folder, name = logged
    local = only_run(folder)
    for alias in ("best", "last"):
        artifact = server.artifact(f"{name.rpartition('/')[0]}/{local.name}:{alias}")
        content = (local / "checkpoints" / f"{alias}.pth").read_bytes()
        assert artifact.files[f"{alias}.pth"] == content
        assert artifact.metadata["epoch"] == 1 and artifact.metadata["bytes"] == len(content)
    mirrored = server.run(name.rpartition("/")[2])
    assert mirrored.files["last_chpt.pth"] == (local / "checkpoints" / "last.pth").read_bytes()


def test_a_run_is_a_checkpoint_by_its_name(server, logged, tmp_path):
    """From another folder, without any setting; the same scores."""
    folder, name = logged
    found = run(server, tmp_path, COMMAND, "task=test", f"checkpoint={name}")
    assert found.returncode == 0, found.stderr
    (path,) = tmp_path.glob("runs/*/test_scores.json")
    assert path.parent.name == name.replace("/", "-")
    scores = json.loads((only_run(folder) / "results.json").read_text())
    assert json.loads(path.read_text())["bound"] == scores["bound"]


def fetched(server, folder, name):
    """What fetching a name says, from a process of its own."""
    found = run(server, folder, [sys.executable, "-c", FETCH], name)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_an_artifact_is_fetched_once(server, logged, tmp_path):
    folder, name = logged
    artifact = f"{name.rpartition('/')[0]}/{only_run(folder).name}:last"
    path = tmp_path / fetched(server, tmp_path, artifact)
    assert path.read_bytes() == (only_run(folder) / "checkpoints" / "last.pth").read_bytes()

    def downloads():
        return [r for r in server.requests if r.method == "GET" and r.path.endswith("last.pth")]

    before = len(downloads())
    assert fetched(server, tmp_path, artifact) == str(path.relative_to(tmp_path))
    assert len(downloads()) == before > 0


def test_a_run_of_the_published_code_has_a_file_and_no_artifact(server, tmp_path):
    script = (
        "import wandb, torch, sys; run = wandb.init(project='paper', id='abc123', mode='online');"
        "torch.save({'model_state_dict': {}}, run.dir + '/last_chpt.pth');"
        "run.save(run.dir + '/last_chpt.pth', run.dir, policy='now'); run.finish()"
    )
    found = run(server, tmp_path, [sys.executable, "-c", script])
    assert found.returncode == 0, found.stderr
    path = tmp_path / fetched(server, tmp_path, f"{ENTITY}/paper/abc123")
    assert torch.load(path, weights_only=True) == {"model_state_dict": {}}


@pytest.mark.parametrize("fault", ["cut", "corrupt"])
def test_a_download_that_is_not_whole_is_refused_and_leaves_nothing(
    server, logged, tmp_path, fault
):
    folder, name = logged
    artifact = f"{name.rpartition('/')[0]}/{only_run(folder).name}:best"
    getattr(server, fault)("best.pth", *([1000] if fault == "cut" else []))
    said = fetched(server, tmp_path, artifact)
    assert said.startswith(f"Error: checkpoint={artifact} could not be fetched whole")
    assert "\n" not in said and not list(tmp_path.glob("cache/**/*.p*"))


def test_what_is_not_there_is_said_in_a_sentence(server, logged, tmp_path):
    _, name = logged
    missing = name.rpartition("/")[0] + "/nobody"
    said = fetched(server, tmp_path, missing)
    assert said.startswith(f"Error: checkpoint={missing} is neither a file nor a W&B run")
    assert "\n" not in said


def test_an_offline_run_is_uploaded_later_and_seen_to_arrive(server, tmp_path):
    """While the server refuses it, that is said; again, once it is up."""
    offline = ["wandb.setup.mode=offline", "task.report=false", "train.seed=7"]
    found = run(server, tmp_path, COMMAND, *ONLINE, *offline)
    assert found.returncode == 0, found.stderr
    local = only_run(tmp_path)
    identity = json.loads((local / "run.json").read_text())["wandb_id"]
    assert identity not in server.runs
    upload = ["task=sync", "run=runs/*"]
    server.fail(status=403)
    found = run(server, tmp_path, COMMAND, *upload)
    assert found.returncode == 1 and "has not arrived at W&B" in found.stderr
    assert found.stderr.count("\n") == 1
    server.clear_faults()
    found = run(server, tmp_path, COMMAND, *upload)
    assert found.returncode == 0 and f"/{identity}" in found.stdout, found.stderr
    mirrored = server.run(identity)
    assert [row["epoch"] for row in mirrored.history if "val/nelbo" in row] == [1]
    assert mirrored.files["last_chpt.pth"] == (local / "checkpoints" / "last.pth").read_bytes()
    server.artifact(f"{ENTITY}/dct_ladder_vae/{local.name}:best")


def test_uploads_that_are_refused_cost_nothing_but_a_line(server, tmp_path):
    server.fail(status=403, path=lambda request: request.operation == "CommitArtifact")
    quick = ["task.report=false", "train.seed=5"]
    found = run(server, tmp_path, COMMAND, *ONLINE, *quick)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "W&B has not got the newest checkpoints" in found.stdout
    assert (only_run(tmp_path) / "results.json").exists()
