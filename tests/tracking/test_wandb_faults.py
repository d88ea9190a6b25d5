"""Whatever W&B does, a run trains, keeps its own record whole, and ends within a minute."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.commands import COMMAND, ONLINE, OWN_DATA, QUIET, SMALL, connected, metrics, only_run
from tests.conftest import ROOT
from tests.tracking.wandb_server import API_KEY, ENTITY, WandbServer

pytestmark = pytest.mark.slow

RUN = [*ONLINE, "train.max_epochs=3", "task.report=false", "wandb.setup.mode=online"]
OFFLINE_LINE = "could not start, recording offline instead"


@pytest.fixture
def server():
    """A server of the test's own: some tests end it."""
    with WandbServer() as running:
        yield running


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The metrics and the test score of the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with WandbServer() as server:
        finish(start(server, folder, *RUN))
    return metrics(only_run(folder)), scores(only_run(folder))


def start(server, folder, *arguments, command=COMMAND, **variables):
    """The command, with an account at the server."""
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env={**connected(server, folder), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, status=0, timeout=150):
    """What it printed."""
    output, errors = process.communicate(timeout=timeout)
    assert process.returncode == status and errors.count("\n") <= 1, output + errors
    return output


def scores(run):
    """The test's figures."""
    return json.loads((run / "results.json").read_text())["bound"]


def check(folder, undisturbed, since_results=60):
    """The run's own record is whole, and its process ended soon after its results were written."""
    run = only_run(folder)
    assert (metrics(run), scores(run)) == undisturbed
    assert time.time() - (run / "results.json").stat().st_mtime < since_results
    return run


def wait_for(condition, process, seconds=90):
    """Until something has happened while the process runs."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)


def arrive(server, folder):
    """Upload afterwards; then W&B has all."""
    run = only_run(folder)
    output = finish(start(server, folder, "task=sync", f"run={run}"))
    assert f"is at W&B as {ENTITY}/dct_ladder_vae/" in output
    mirrored = server.run(json.loads((run / "run.json").read_text())["wandb_id"])
    rows = [row["epoch"] for row in mirrored.history if "val/nelbo" in row]
    assert rows == [1, 2, 3] and mirrored.state == "finished"
    assert mirrored.summary["test/nelbo"] == scores(run)["nelbo"]
    assert mirrored.files["last_chpt.pth"] == (run / "checkpoints" / "last.pth").read_bytes()
    whole(server, run, mirrored.id)


def whole(server, run, wandb_id):
    """W&B's newest best and last checkpoints are those in the folder; the code is not asked for."""
    for alias in ("best", "last"):
        artifact = server.artifact(f"{ENTITY}/dct_ladder_vae/{wandb_id}-{alias}:latest")
        content = (run / "checkpoints" / f"{alias}.pth").read_bytes()
        assert artifact.files == {f"{alias}.pth": content}
    assert {artifact.type for artifact in server.artifacts} <= {"model", "run_table"}


@pytest.mark.parametrize("status", ["away", 401, 403, 500])
def test_a_server_that_is_away_or_refuses_at_the_start(server, tmp_path, undisturbed, status):
    with WandbServer() as ended:
        pass
    if status != "away":
        server.fail(status)
    began = time.monotonic()
    process = start(ended if status == "away" else server, tmp_path, *RUN)
    said = ""
    while OFFLINE_LINE not in said:
        said = process.stdout.readline()
        assert said and time.monotonic() - began < 35  # 30 and the start of Python
    assert "task=sync run=" in finish(process)
    check(tmp_path, undisturbed)
    server.clear_faults()
    arrive(server, tmp_path)


@pytest.mark.parametrize("fault", ["away", 401, 403, 500])
def test_a_server_lost_in_the_middle(server, tmp_path, undisturbed, fault):
    with WandbServer() as another:
        process = start(another, tmp_path, *RUN)
        wait_for(lambda: another.runs, process)
        if fault != "away":
            another.fail(fault)
            output = finish(process)
    if fault == "away":
        output = finish(process)
    assert "W&B has not got everything yet" in output
    check(tmp_path, undisturbed)
    arrive(server, tmp_path)


def test_uploads_that_are_always_refused(server, tmp_path, undisturbed):
    """Cost nothing but a line; task=sync says so too, until they are taken."""
    server.fail(403, path=lambda request: request.operation == "CommitArtifact")
    assert "W&B has not got everything yet" in finish(start(server, tmp_path, *RUN))
    check(tmp_path, undisturbed)
    sync = start(server, tmp_path, "task=sync", "run=runs/*")
    _, errors = sync.communicate()
    assert sync.returncode == 1 and "has not arrived at W&B" in errors and errors.count("\n") == 1
    server.clear_faults()
    arrive(server, tmp_path)


def test_a_slow_server(server, tmp_path, undisturbed):
    server.delay(2.0)
    finish(start(server, tmp_path, *RUN))
    check(tmp_path, undisturbed)
    server.clear_faults()
    arrive(server, tmp_path)


def test_a_server_that_loses_uploads_once_is_sent_them_again(server, tmp_path, undisturbed):
    server.fail(403, times=1, path=lambda r: r.method == "PUT" and "last_chpt" in r.path)
    server.fail(403, times=1, path=lambda r: r.operation == "CommitArtifact")
    output = finish(start(server, tmp_path, *RUN))
    assert "has not got" not in output
    run = check(tmp_path, undisturbed)
    (mirrored,) = server.runs.values()
    assert mirrored.files["last_chpt.pth"] == (run / "checkpoints" / "last.pth").read_bytes()
    whole(server, run, mirrored.id)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
@pytest.mark.parametrize("disk", ["size=100k", "size=1k", "size=1k,ro"])
def test_a_full_disk_under_its_folder(server, tmp_path, undisturbed, disk):
    """Where W&B keeps its record: full in the middle, at the start, read-only; the run has room."""
    first = start(server, tmp_path, *RUN)
    wait_for(lambda: list(tmp_path.glob("runs/*/wandb")), first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    run = only_run(tmp_path)
    shutil.rmtree(run / "wandb")
    (run / "wandb").mkdir()
    mount = f'mount -t tmpfs -o {disk} none "{run}/wandb" && exec "$@"'
    small = ["unshare", "--mount", "sh", "-c", mount, "sh", *COMMAND]
    output = finish(start(server, tmp_path, *RUN, command=small))
    assert "W&B has not got" in output or "could not start, without it" in output
    check(tmp_path, undisturbed)
    arrive(server, tmp_path)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_killed_and_started_again(server, tmp_path, undisturbed, mode, after):
    """After so many epochs' rows, at once: W&B's processes too."""
    arguments = [*RUN, f"wandb.setup.mode={mode}"]
    process = start(server, tmp_path, *arguments)

    def reached():
        rows = list(tmp_path.glob("runs/*/metrics.jsonl"))
        started = list(tmp_path.glob("runs/*/wandb/recorded.json")) or server.runs
        return started if not after else rows and rows[0].read_text().count("\n") >= after

    wait_for(reached, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start(server, tmp_path, *arguments))
    check(tmp_path, undisturbed)
    arrive(server, tmp_path)


def test_watched_gradients_come_between_the_epochs(server, tmp_path):
    finish(start(server, tmp_path, *RUN, "wandb.watch=true", "train.max_epochs=9"))
    (mirrored,) = server.runs.values()
    rows = [row for row in mirrored.history if "val/nelbo" in row]
    assert [row["epoch"] for row in rows] == list(range(1, 10))
    watched = [row for row in mirrored.history if any(k.startswith("gradients/") for k in row)]
    assert len(watched) == 1  # 117 steps


def test_another_machine_goes_on_with_a_run(server, tmp_path, undisturbed):
    """By its name alone: the same W&B run, the same folder, the same figures as uninterrupted."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    process = start(server, one, *RUN)
    wait_for(lambda: list(one.glob("runs/*/checkpoints/best.pth")), process)
    process.send_signal(signal.SIGTERM)
    finish(process, status=75)
    before = only_run(one)
    wandb_id = json.loads((before / "run.json").read_text())["wandb_id"]
    assert 0 < len(metrics(before)) < 3
    quick = ["task.estimators=[iwae]", "task.report=false", "train.device=cpu"]
    resume = f"train.resume_id={ENTITY}/dct_ladder_vae/{wandb_id}"
    finish(start(server, other, resume, OWN_DATA, *quick))
    after = check(other, undisturbed)
    assert after.name == before.name and list(server.runs) == [wandb_id]
    assert json.loads((after / "run.json").read_text())["wandb_id"] == wandb_id
    arrive(server, other)
    name = f"{ENTITY}/dct_ladder_vae/{wandb_id}"
    local = f"train.resume_id={wandb_id}"  # now it is local
    found = start(server, other, local, OWN_DATA, *quick)
    assert "Finished before" in finish(found)
    shutil.rmtree(after)  # a bare id means the run in wandb.setup's project
    finish(start(server, other, f"train.resume_id={wandb_id}", OWN_DATA, *quick))
    check(other, undisturbed)
    shutil.rmtree(after)
    finish(start(server, other, f"train.resume_id=dct_ladder_vae/{wandb_id}", OWN_DATA, *quick))
    check(other, undisturbed)
    # What the folder has is not fetched again.
    seen = len(server.requests)
    finish(start(server, other, "task=test", f"checkpoint={name}", OWN_DATA, *quick[:1]))
    got = [r for r in server.requests[seen:] if r.method == "GET" and r.path.endswith(".pth")]
    assert got == []


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_trained_longer_is_the_same_run(server, tmp_path, elsewhere):
    """In the folder of the shorter one, and on a machine that has to fetch it."""
    quick = ["task.estimators=[iwae]", "task.report=false"]
    finish(start(server, tmp_path, *RUN, *quick))
    (wandb_id,) = server.runs
    folder = tmp_path / "other" if elsewhere else tmp_path
    folder.mkdir(exist_ok=True)
    resume = [f"train.resume_id={ENTITY}/dct_ladder_vae/{wandb_id}", "train.max_epochs=4"]
    assert "trained longer: 3 epochs" in finish(start(server, folder, *resume, OWN_DATA, *quick))
    (mirrored,) = server.runs.values()
    rows = [row["epoch"] for row in mirrored.history if "val/nelbo" in row]
    assert rows == [row["epoch"] for row in metrics(only_run(folder))] == [1, 2, 3, 4]
    assert "Finished before" in finish(start(server, folder, *resume, OWN_DATA, *quick))


def test_a_key_on_the_command_line_is_nowhere(server, tmp_path):
    """Neither in a file that the run writes nor in anything that is sent or printed."""
    kept = connected(server, tmp_path)
    kept.pop("WANDB_API_KEY")
    key, sweep = f"wandb.api_key={API_KEY}", ["-m", "train.seed=1,2"]
    found = subprocess.run(
        [*COMMAND, *sweep, *ONLINE, key, "wandb.setup.mode=online"],
        cwd=tmp_path,
        env=kept,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert found.returncode == 0 and len(server.runs) == 2, found.stdout + found.stderr
    secret = API_KEY.encode()
    for run in server.runs.values():
        assert run.state == "finished"
        assert [name for name, content in run.files.items() if secret in content] == []
        assert API_KEY not in json.dumps([run.settings, run.streams])
    for artifact in server.artifacts:
        for content in [*artifact.files.values(), *artifact.manifests.values()]:
            assert secret not in content
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 50
    assert [path for path in written if secret in path.read_bytes()] == []
    assert API_KEY not in found.stdout + found.stderr
    wrong = start(server, tmp_path, *ONLINE, key, "train.max_epochs=-1")
    output, errors = wrong.communicate()
    assert wrong.returncode == 1 and "train.max_epochs=-1" in errors
    assert API_KEY not in output + errors


def test_a_sweep_by_the_agent(server, tmp_path):
    """The documented sweep file, run by W&B's own agent: the runs it names get their figures."""
    section = (ROOT / "docs/wandb.md").read_text().split("## Sweeps by W&B")[1].split("\n## ")[0]
    config = section.split("```yaml\n")[1].split("```")[0]
    sweep = yaml.safe_load(config)
    sweep["program"] = str(ROOT / sweep["program"])
    sweep["command"] += [*SMALL, *QUIET[1:], "train.max_epochs=1"]
    commands = []
    for number in range(2):
        chosen = {key: {"value": law["values"][number]} for key, law in sweep["parameters"].items()}
        command = {"type": "run", "program": sweep["program"], "args": chosen}
        commands.append({**command, "id": str(number), "run_id": f"agents{number}"})
    server.sweeps["sweep1"] = (yaml.safe_dump(sweep), commands)
    agent = [sys.executable, "-m", "wandb", "agent", f"{ENTITY}/ladders/sweep1"]
    own = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    process = start(server, tmp_path, command=agent, PATH=own)  # its interpreter is PATH's
    _, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert sorted(server.runs) == ["agents0", "agents1"]
    for number, run in enumerate(server.runs.values()):
        assert run.project == "ladders" and sweep["metric"]["name"] in run.summary
        rate = sweep["parameters"]["train.optimizer.lr"]["values"][number]
        assert run.config["train"]["optimizer"]["lr"] == rate
    folders = [path.parent for path in tmp_path.glob("runs/*/run.json")]
    assert len(folders) == 2
