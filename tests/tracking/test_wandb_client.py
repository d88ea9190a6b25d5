"""W&B by its real client, against a server of our own on this machine."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import COMMAND, ONLINE, OWN_DATA, connected, only_run
from tests.conftest import ROOT
from tests.tracking.wandb_server import API_KEY, ENTITY, MANIFEST, WandbServer
from utils.version import own_files

FETCH = """
import sys
from pathlib import Path
from utils.tracking.wandb_fetch import fetch
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


def run(server, folder, command, *arguments, **variables):
    """A process that knows the server; its output."""
    found = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env={**connected(server, folder), **variables},
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
    tags += ["wandb.save_code=true"]
    others = set(server.runs)
    steps = "dataset.data_module.batch_size=20"  # as many as it takes for units to be active
    found = run(server, folder, COMMAND, *ONLINE, *tags, steps)
    assert found.returncode == 0 and found.stderr == "", found.stdout + found.stderr
    (identity,) = set(server.runs) - others
    return folder, f"{ENTITY}/dct_ladder_vae/{identity}"


def table_of(server, name, table):
    """A table as W&B has it: rows by column, and the pictures' pixels."""
    project, _, identity = name.rpartition("/")
    artifact = server.artifact(f"{project}/run-{identity}-{table}:latest")
    assert artifact.version == "v0" and artifact.type == "run_table"
    content = json.loads(artifact.files[f"{table}.table.json"])
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    for row in rows:
        if "image" in row:
            picture = io.BytesIO(artifact.files[row["image"]["path"]])
            row["image"] = np.asarray(Image.open(picture))
    return rows


def check_tables(server, name, local):
    """Both tables have the figures of the run's files; the run's last row shows them."""
    scores = json.loads((local / "results.json").read_text())
    report = json.loads((local / "report" / "report.json").read_text())
    layers = table_of(server, name, "test_layers")
    assert [row["kl"] for row in layers] == scores["bound"]["kl"]
    assert [row["active"] for row in layers] == scores["bound"]["active"]
    assert [row["verdict"] for row in layers] == [one["verdict"] for one in report["layers"]]
    images = table_of(server, name, "test_images")
    arrays, thumbnails = np.load(local / "results.npz"), np.load(local / "thumbnails.npz")
    assert [row["id"] for row in images] == thumbnails["ids"].tolist() and len(images) > 10
    assert [row["nll_iwae"] for row in images] == arrays["nll_iwae"][thumbnails["ids"]].tolist()
    assert [row["kl_0"] for row in images] == arrays["kl"][thumbnails["ids"], 0].tolist()
    assert all((a["image"] == b).all() for a, b in zip(images, thumbnails["images"], strict=True))
    last = server.run(name.rpartition("/")[2]).history[-1]
    assert {last[table]["_type"] for table in ("test_layers", "test_images")} == {"table-file"}


def test_layers_and_images_are_tables(server, logged):
    folder, name = logged
    check_tables(server, name, only_run(folder))


def test_the_code_is_saved_and_nothing_else(server, logged):
    artifact = server.artifact(f"{ENTITY}/dct_ladder_vae/source:latest")
    assert artifact.type == "code"
    own = {str(path.relative_to(ROOT)): path.read_bytes() for path in own_files()}
    assert artifact.files == own and len(own) > 100
    assert {name.partition("/")[0] for name in own} == {
        *("configs", "datasets", "model", "utils", "run_experiment.py")
    }


def row_of(run):
    """The one row of a run's metrics."""
    return json.loads((run / "metrics.jsonl").read_text())


def test_a_run_is_mirrored(server, logged):
    """Figures, pictures, the page, settings without secrets."""
    folder, name = logged
    mirrored, local = server.run(name.rpartition("/")[2]), only_run(folder)
    (row,) = [row for row in mirrored.history if "val/nelbo" in row]
    kept = row_of(local)
    assert {key: row[key] for key in kept} == kept
    scores = json.loads((local / "results.json").read_text())
    assert mirrored.summary["test/nelbo"] == scores["bound"]["nelbo"]
    assert mirrored.summary["parameters/encoder"] > 1000
    shown = {k: v for row in mirrored.history for k, v in row.items() if "log_variance" in k}
    assert shown
    for key, histogram in shown.items():
        layer = key.rpartition("_")[2]
        active = kept[f"collapse/active_units_{layer}"] * scores["bound"]["elements"][int(layer)]
        assert histogram["_type"] == "histogram"
        assert sum(histogram["values"]) == pytest.approx(active) and active >= 1
    (page,) = [path for path in mirrored.files if path.startswith("media/html/report")]
    assert mirrored.files[page] == (local / "report" / "report.html").read_bytes()
    sent = set(mirrored.files.values())
    pictures = [*local.glob("figures/*.png"), *local.glob("report/*.png")]
    assert len(pictures) > 10 and all(path.read_bytes() in sent for path in pictures)
    text = json.dumps(mirrored.config)
    assert '"num_ch"' in text and API_KEY not in text
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files if API_KEY.encode() in path.read_bytes()] == []
    assert mirrored.tags == ["small", "plain"]
    assert (mirrored.group, mirrored.job_type) == ("digits_ladder", "train")
    assert list((local / "tensorboard").glob("events.out.tfevents.*"))


def test_every_row_has_its_place_on_the_axes(server, logged):
    folder, name = logged
    mirrored, kept = server.run(name.rpartition("/")[2]), row_of(only_run(folder))
    assert len(mirrored.history) > 3
    for row in mirrored.history:
        assert (row["epoch"], row["step"]) == (1, kept["step"])
        assert row["images_seen"] == 20 * kept["step"] > 1000
        assert row["hours"] == kept["train/seconds"] / 3600 > 0
    defined = [metric.get("1") for metric in mirrored.settings["_wandb"]["value"]["m"]]
    assert {"epoch", "step", "images_seen", "hours"} <= set(defined)


def test_each_checkpoint_is_an_artifact_of_its_own_sent_once(server, logged):
    folder, name = logged
    local = only_run(folder)
    for alias in ("best", "last"):
        artifact = server.artifact(f"{name}-{alias}:latest")
        content = (local / "checkpoints" / f"{alias}.pth").read_bytes()
        assert artifact.files == {f"{alias}.pth": content}
        assert artifact.metadata["epoch"] == 1 and artifact.metadata["bytes"] == len(content)
        assert artifact.aliases == ["latest"] and artifact.version == "v0"
        path = f"/artifact-files/{artifact.id}/{alias}.pth"
        assert [r.path for r in server.requests if r.method == "PUT"].count(path) == 1
    mirrored = server.run(name.rpartition("/")[2])
    assert mirrored.files["last_chpt.pth"] == (local / "checkpoints" / "last.pth").read_bytes()


@pytest.mark.slow
def test_a_run_is_a_checkpoint_by_its_name(server, logged, tmp_path):
    """From another folder, without any setting; the same scores."""
    folder, name = logged
    found = run(server, tmp_path, COMMAND, "task=test", f"checkpoint={name}", OWN_DATA)
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
    artifact = f"{name}-last:latest"
    path = tmp_path / fetched(server, tmp_path, artifact)
    assert path.read_bytes() == (only_run(folder) / "checkpoints" / "last.pth").read_bytes()

    def downloads():
        return [r for r in server.requests if r.method == "GET" and r.path.endswith("last.pth")]

    before = len(downloads())
    assert fetched(server, tmp_path, artifact) == str(path.relative_to(tmp_path))
    assert len(downloads()) == before > 0


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", "corrupt"])
def test_a_download_that_is_not_whole_is_refused_and_leaves_nothing(
    server, logged, tmp_path, fault
):
    artifact = f"{logged[1]}-best:latest"
    getattr(server, fault)("best.pth", *([1000] if fault == "cut" else []))
    said = fetched(server, tmp_path, artifact)
    assert said.startswith(f"Error: checkpoint={artifact} could not be fetched whole")
    assert "\n" not in said and not list(tmp_path.glob("cache/**/*.p*"))
    server.clear_faults()
    assert (tmp_path / fetched(server, tmp_path, artifact)).is_file()  # no bad copy is kept


def test_the_last_checkpoint_never_stands_in_for_a_best_that_cannot_be_asked_for(
    server, logged, tmp_path
):
    _, name = logged
    server.fail(403, path=lambda request: request.operation == "ArtifactMembershipByName")
    said = fetched(server, tmp_path, name)
    assert said.startswith(f"Error: checkpoint={name} is neither a file nor a W&B run")


def test_what_is_not_there_is_said_in_a_sentence(server, logged, tmp_path):
    _, name = logged
    missing = name.rpartition("/")[0] + "/nobody"
    said = fetched(server, tmp_path, missing)
    assert said.startswith(f"Error: checkpoint={missing} is neither a file nor a W&B run")
    assert "\n" not in said


@pytest.mark.slow
def test_where_wandb_cannot_be_asked_the_copy_fetched_last_stands_in(server, logged, tmp_path):
    _, name = logged
    kept = fetched(server, tmp_path, name)
    server.fail(403)
    with_warning = run(server, tmp_path, [sys.executable, "-c", FETCH], name)
    assert with_warning.stdout.strip() == kept
    assert f"checkpoint={name}: W&B could not be asked" in with_warning.stderr


def test_an_artifact_that_reaches_outside_its_folder_is_not_fetched(server, logged, tmp_path):
    source = f"{logged[1]}-best:latest"
    artifact = server.artifact(source)
    whole = artifact.manifests[MANIFEST]
    for path in ("../../outside.pth", str(tmp_path / "outside.pth")):
        manifest = json.loads(whole)
        manifest["contents"] = {path: manifest["contents"]["best.pth"]}
        artifact.manifests[MANIFEST] = json.dumps(manifest).encode()
        found = run(server, tmp_path, [sys.executable, "-c", FETCH], source)
        assert found.stdout == (
            f"Error: checkpoint={source}: its file {path} lies outside the artifact, and was not "
            "fetched.\n"
        )
    artifact.manifests[MANIFEST] = whole
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.slow
def test_a_run_of_the_published_code_loads(server, tmp_path, references):
    """Its settings name classes that are not here; the experiment's name stands in for them."""
    script = (
        "import wandb, shutil, sys; config = {'model': {'_target_': 'model.vae.LadderVAE'}};"
        "run = wandb.init(project='paper', id='published', mode='online', config=config);"
        "shutil.copy(sys.argv[1], run.dir + '/last_chpt.pth');"
        "run.save(run.dir + '/last_chpt.pth', run.dir, policy='now'); run.finish()"
    )
    file = references / "mnist_plain.pth"
    found = run(server, tmp_path, [sys.executable, "-c", script, str(file)])
    assert found.returncode == 0, found.stderr
    draws = []
    for index, source in enumerate([file, f"{ENTITY}/paper/published"]):
        sample = ["task=sample", f"checkpoint={source}", "task.num_images=2"]
        found = run(
            server,
            tmp_path,
            COMMAND,
            *sample,
            "experiment=mnist_ladder",
            f"task.output={tmp_path}/{index}",
        )
        assert found.returncode == 0, found.stderr
        draws.append(np.load(tmp_path / str(index) / "samples.npz")["images"])
    assert (draws[0] == draws[1]).all() and draws[0].std() > 0


@pytest.mark.slow
def test_an_offline_run_is_uploaded_later_and_seen_to_arrive(server, tmp_path):
    offline = ["wandb.setup.mode=offline", "train.seed=7"]
    found = run(server, tmp_path, COMMAND, *ONLINE, *offline)
    assert found.returncode == 0, found.stderr
    assert "task=sync run=" in found.stdout
    local = only_run(tmp_path)
    identity = json.loads((local / "run.json").read_text())["wandb_id"]
    assert identity not in server.runs
    # What waits for the upload takes no space: it is the checkpoints under other names.
    waiting = [p for p in (local / "wandb").rglob("*.pth") if p.stat().st_size > 1e5]
    kept = {p.stat().st_ino for p in (local / "checkpoints").iterdir()}
    assert len(waiting) == 3 and {p.stat().st_ino for p in waiting} <= kept
    entity = f"wandb.setup.entity={ENTITY}"
    found = run(server, tmp_path, COMMAND, "task=sync", "run=runs/*", entity, WANDB_ENTITY="")
    assert found.returncode == 0 and f"/{identity}" in found.stdout, found.stderr
    mirrored = server.run(identity)
    assert [row["epoch"] for row in mirrored.history if "val/nelbo" in row] == [1]
    assert any(path.startswith("media/images/figures/samples_") for path in mirrored.files)
    assert mirrored.files["last_chpt.pth"] == (local / "checkpoints" / "last.pth").read_bytes()
    for alias in ("best", "last"):
        artifact = server.artifact(f"{ENTITY}/dct_ladder_vae/{identity}-{alias}:latest")
        content = (local / "checkpoints" / f"{alias}.pth").read_bytes()
        assert artifact.files == {f"{alias}.pth": content} and artifact.version == "v0"
    check_tables(server, f"{ENTITY}/dct_ladder_vae/{identity}", local)
    sent = [r.path for r in server.requests if r.method == "PUT" and r.path.endswith(".pth")]
    assert len(sent) == len(set(sent))
    before = len(server.requests)  # again: nothing is left to send
    found = run(server, tmp_path, COMMAND, "task=sync", "run=runs/*", entity, WANDB_ENTITY="")
    assert found.returncode == 0
    again = [r.path for r in server.requests[before:] if r.method == "PUT"]
    assert not any(path.endswith((".pth", ".jsonl", ".png", ".html")) for path in again)


OLD = """
import sys, wandb
from pathlib import Path
run = wandb.init(project="dct_ladder_vae", id="older", name="digits-seed0-abc", mode="online")
for alias in ("best", "last"):
    Path(f"{alias}.pth").write_text(alias)
    artifact = wandb.Artifact("digits-seed0-abc", "model")
    artifact.add_file(f"{alias}.pth")
    run.log_artifact(artifact, aliases=[alias, f"{alias}-older"]).wait()
run.finish()
"""


@pytest.mark.slow
def test_what_earlier_versions_uploaded_is_found_by_its_names(server, tmp_path):
    """One artifact for both checkpoints, told apart by aliases."""
    found = run(server, tmp_path, [sys.executable, "-c", OLD])
    assert found.returncode == 0, found.stderr
    project = f"{ENTITY}/dct_ladder_vae"
    for name, content in {
        f"{project}/older": "best",
        f"{project}/digits-seed0-abc:best": "best",
        f"{project}/digits-seed0-abc:last": "last",
    }.items():
        assert (tmp_path / fetched(server, tmp_path, name)).read_text() == content
