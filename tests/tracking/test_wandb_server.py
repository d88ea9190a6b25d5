"""The real W&B client against the server that stands in for W&B: all it sends comes back."""

import base64
import hashlib
import http.client
import json
import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.tracking.wandb_server import AUTHORIZATION, WandbServer

pytestmark = pytest.mark.slow  # it tests a tool of tests; test_wandb_client.py uses it

WEIGHTS = bytes(range(256)) * 400
MD5 = base64.b64encode(hashlib.md5(WEIGHTS).digest()).decode()
VIEWER = {"query": "query Viewer { viewer { id } }"}
RECORD = """
    import pathlib, wandb
    run = wandb.init(
        project="ladders", id="first", name="The first", group="digits", tags=["small"],
        config={"rate": 0.1, "model": {"layers": 3}},
    )
    print("training")
    for epoch in range(3):
        run.log({"epoch": epoch, "loss": 1 / 2**epoch})
    run.summary["best"] = 0.25
    weights = pathlib.Path("my weights.bin")
    weights.write_bytes(bytes(range(256)) * 400)
    run.save(weights, policy="now")
    artifact = wandb.Artifact("model", "checkpoint", metadata={"epoch": 2})
    artifact.add_file(weights, "kept/my weights.bin")
    run.log_artifact(artifact, aliases=["best"]).wait(30)
    run.finish()
"""
DOWNLOADS = """
    import wandb
    api = wandb.Api()
    actions = [
        lambda: api.artifact("tester/ladders/model:best").download(root="artifact"),
        lambda: api.run("tester/ladders/first").file("my weights.bin").download(root="file"),
    ]
"""
START = """
    import wandb
    actions = [lambda: wandb.init(project="ladders", id="started").finish()]
"""
TRY = """
for action in actions:
    try:
        action()
        print("fine")
    except Exception as error:
        print(type(error).__name__, *str(error).splitlines())
"""


def process(server: WandbServer, folder: Path, *arguments: str, **variables: str) -> list[str]:
    """Run Python in a process of its own, in `folder`; the lines it prints."""
    folder.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    found = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**kept, "WANDB_SILENT": "true", **server.environment(folder), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout.splitlines()


def client(server: WandbServer, folder: Path, code: str, **variables: str) -> list[str]:
    """Run a script; the lines it prints."""
    return process(server, folder, "-c", textwrap.dedent(code), **variables)


def attempts(server: WandbServer, folder: Path, code: str, **variables: str) -> list[str]:
    """Run a script and the `actions` it lists; what each of these raises, or fine."""
    return process(server, folder, "-c", textwrap.dedent(code) + TRY, **variables)


def connect(server: WandbServer) -> http.client.HTTPConnection:
    """A plain connection, for what the client cannot be made to do."""
    return http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)


def ask(connection, path: str = "/graphql", message: dict = VIEWER, key=AUTHORIZATION) -> int:
    """Post a message; the reply's status."""
    connection.request("POST", path, json.dumps(message), {"Authorization": key})
    reply = connection.getresponse()
    reply.read()  # before it the connection takes no other request
    return reply.status


@pytest.fixture
def server():
    """A server that knows nothing yet."""
    with WandbServer() as server:
        yield server


@pytest.fixture(scope="module")
def once_recorded(tmp_path_factory):
    """A server with one run, shared: most tests only look at it."""
    with WandbServer() as server:
        client(server, tmp_path_factory.mktemp("recorded"), RECORD)
        yield server


@pytest.fixture
def recorded(once_recorded):
    """The same, answering well again afterwards."""
    yield once_recorded
    once_recorded.clear_faults()


def test_a_run_arrives(recorded):
    run = recorded.run("first")
    assert (run.display_name, run.group, run.tags) == ("The first", "digits", ["small"])
    assert (run.state, run.exit_code) == ("finished", 0)
    assert run.config == {"rate": 0.1, "model": {"layers": 3}}
    rows = [(row["_step"], row["epoch"], row["loss"]) for row in run.history]
    assert rows == [(0, 0, 1.0), (1, 1, 0.5), (2, 2, 0.25)]
    assert (run.summary["best"], run.summary["epoch"]) == (0.25, 2)
    assert run.output[0].endswith("training")
    assert "system.memory_percent" in run.events[0]


def test_run_files_arrive(recorded):
    assert recorded.run("first").files["my weights.bin"] == WEIGHTS


def test_an_artifact_arrives(recorded):
    artifact = recorded.artifact("tester/ladders/model:best")
    assert artifact is recorded.artifact("tester/ladders/model:v0")
    assert (artifact.type, artifact.metadata) == ("checkpoint", {"epoch": 2})
    assert sorted(artifact.aliases) == ["best", "latest"]
    assert artifact.files == {"kept/my weights.bin": WEIGHTS}
    entry = artifact.manifest["contents"]["kept/my weights.bin"]
    assert (entry["digest"], entry["size"]) == (MD5, len(WEIGHTS))


def test_another_process_reads_the_artifact(recorded, tmp_path):
    # In another folder: the client would take its own copy of what it has sent from its cache.
    code = """
        import json, wandb
        artifact = wandb.Api().artifact("tester/ladders/model:best")
        artifact.download(root="here")
        print(json.dumps([artifact.version, sorted(artifact.aliases), artifact.metadata]))
    """
    [line] = client(recorded, tmp_path, code)
    assert json.loads(line) == ["v0", ["best", "latest"], {"epoch": 2}]
    assert (tmp_path / "here" / "kept" / "my weights.bin").read_bytes() == WEIGHTS
    assert ("GET", "/artifact-files/artifact-0/kept/my%20weights.bin", None) in recorded.requests


def test_another_process_reads_the_run(recorded, tmp_path):
    code = """
        import json, wandb
        run = wandb.Api().run("tester/ladders/first")
        files = {file.name: [file.size, file.md5] for file in run.files()}
        missing = run.file("no such file")
        run.file("my weights.bin").download(root="here", replace=True)
        print(json.dumps([run.state, run.config, run.summary["best"], files, missing.md5]))
    """
    [line] = client(recorded, tmp_path, code)
    state, config, best, files, missing = json.loads(line)
    assert (state, config, best) == ("finished", recorded.run("first").config, 0.25)
    assert files["my weights.bin"] == [len(WEIGHTS), MD5]
    assert set(files) == set(recorded.run("first").files)
    assert missing == "0"
    assert (tmp_path / "here" / "my weights.bin").read_bytes() == WEIGHTS


def test_what_is_unknown_raises(recorded, tmp_path):
    code = """
        import wandb
        api = wandb.Api()
        actions = [
            lambda: api.run("tester/ladders/second"),
            lambda: api.run("tester/snakes/first"),
            lambda: api.artifact("tester/ladders/model:v1"),
            lambda: api.artifact("tester/snakes/model:best"),
            lambda: api.run("tester/ladders/first").file("no such file").download(),
        ]
    """
    raised = attempts(recorded, tmp_path, code)
    assert len(raised) == 5 and all(line.startswith("CommError") for line in raised)
    assert "not find run" in raised[0] and "not found" in raised[2] and "404" in raised[4]


def test_versions_count_up_and_aliases_move(server, tmp_path):
    code = """
        import pathlib, wandb
        run = wandb.init(project="ladders")
        for content, alias in [("one", "good"), ("two", "good"), ("one", "best")]:
            path = pathlib.Path("weights.bin")
            path.write_text(content)
            artifact = wandb.Artifact("model", "checkpoint")
            artifact.add_file(path)
            print(run.log_artifact(artifact, aliases=[alias]).wait(30).version)
    """
    assert client(server, tmp_path, code) == ["v0", "v1", "v0"]  # known content: no new version
    first, second = server.artifacts
    assert first.files == {"weights.bin": b"one"} and second.files == {"weights.bin": b"two"}
    assert (sorted(first.aliases), second.aliases) == (["best", "latest"], ["good"])


def test_a_resumed_run_goes_on_where_it_ended(server, tmp_path):
    code = """
        import wandb
        run = wandb.init(project="ladders", id="long", resume="allow", {settings})
        print("part", {start})
        for epoch in range({start}, {start} + 3):
            run.log({{"epoch": epoch}})
        run.finish(exit_code={exit_code})
    """
    settings = 'config={"rate": 0.1}, tags=["small"]'
    client(server, tmp_path / "one", code.format(start=0, exit_code=3, settings=settings))
    assert (server.run("long").state, server.run("long").exit_code) == ("failed", 3)
    client(server, tmp_path / "two", code.format(start=3, exit_code=0, settings=""))
    run = server.run("long")
    assert (run.state, run.exit_code) == ("finished", 0)
    assert [row["epoch"] for row in run.history] == [0, 1, 2, 3, 4, 5]
    assert [row["_step"] for row in run.history] == [0, 1, 2, 3, 4, 5]
    assert (run.config, run.tags, run.summary["epoch"]) == ({"rate": 0.1}, ["small"], 5)
    assert [line.split(" ", 1)[1] for line in run.output] == ["part 0", "part 3"]


@pytest.mark.parametrize("known", [False, True])
def test_an_offline_run_arrives_when_it_is_synced(server, tmp_path, known):
    code = """
        import pathlib, wandb
        run = wandb.init(project="ladders", id="away", resume="allow", config={"rate": 0.1})
        for epoch in range(3):
            run.log({"epoch": epoch})
        weights = pathlib.Path("weights.bin")
        weights.write_bytes(bytes(range(256)) * 400)
        run.save(weights, policy="now")
        artifact = wandb.Artifact("model", "checkpoint")
        artifact.add_file(weights)
        run.log_artifact(artifact, aliases=["best"])
        run.finish()
    """
    if known:  # a run that began online
        client(server, tmp_path / "online", code.replace("weights.bin", "other.bin"))
    seen = len(server.requests)
    folder = tmp_path / "offline"
    client(server, folder, code, WANDB_MODE="offline")
    assert len(server.requests) == seen
    [path] = folder.glob("wandb_dir/wandb/offline-run-*")
    process(server, folder, "-m", "wandb", "sync", str(path))
    run = server.run("away")
    assert [row["epoch"] for row in run.history] == [0, 1, 2] * (1 + known)
    assert [row["_step"] for row in run.history] == list(range(3 + 3 * known))
    assert (run.config, run.state, run.summary["epoch"]) == ({"rate": 0.1}, "finished", 2)
    assert run.files["weights.bin"] == WEIGHTS
    assert server.artifact("tester/ladders/model:best").files == {"weights.bin": WEIGHTS}


def test_a_download_cut_short_raises(recorded, tmp_path):
    recorded.cut("-files/", after_bytes=1000)
    artifact, file = attempts(recorded, tmp_path, DOWNLOADS)
    assert "1000 bytes read" in artifact and "unexpected EOF" in file
    assert not (tmp_path / "artifact" / "kept" / "my weights.bin").exists()
    assert (tmp_path / "file" / "my weights.bin").read_bytes() == WEIGHTS[:1000]


def test_the_client_takes_a_corrupt_download(recorded, tmp_path):
    recorded.corrupt("-files/")
    assert attempts(recorded, tmp_path, DOWNLOADS) == ["fine", "fine"]
    for path in ("artifact/kept/my weights.bin", "file/my weights.bin"):
        pairs = zip((tmp_path / path).read_bytes(), WEIGHTS, strict=True)
        assert sum(ours != theirs for ours, theirs in pairs) == 1


def test_a_refused_download_raises(recorded, tmp_path):
    recorded.fail(403, path="-files/")
    artifact, file = attempts(recorded, tmp_path, DOWNLOADS)
    # Refused at a file's own address, the client tries one more that only W&B has.
    assert artifact.startswith("HTTPError 404") and "403" in file


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_start_raises_at_once(server, tmp_path, status):
    server.fail(status, path=lambda request: request.operation == "UpsertBucket")
    assert attempts(server, tmp_path, START) == [f"CommError refused: {status}"]
    assert [request.operation for request in server.requests].count("UpsertBucket") == 1
    assert server.runs == {}


def test_a_wrong_key_is_refused(server, tmp_path):
    wrong = attempts(server, tmp_path, START, WANDB_API_KEY="f" * 40)
    assert wrong == ["CommError refused: 401"]


def test_a_server_in_trouble_is_asked_again(server, tmp_path):
    server.fail(500, times=1, path=lambda request: request.operation == "UpsertBucket")
    server.fail(500, times=1, path="/file_stream")
    assert attempts(server, tmp_path, START) == ["fine"]
    assert server.run("started").state == "finished"


def test_a_server_that_stays_in_trouble_raises(server, tmp_path):
    server.fail(500)
    quick = {"WANDB_INIT_TIMEOUT": "3", "WANDB_X_DISABLE_VIEWER": "true"}
    [line] = attempts(server, tmp_path, START, **quick)
    assert line.startswith("CommError Timed out") and "HTTP 500" in line


def test_refused_uploads_lose_run_files_in_silence(server, tmp_path):
    code = """
        import pathlib, wandb
        run = wandb.init(project="ladders", id="first")
        weights = pathlib.Path("weights.bin")
        weights.write_text("one")
        run.save(weights, policy="now")
        artifact = wandb.Artifact("model", "checkpoint")
        artifact.add_file(weights)
        run.log_artifact(artifact)
        actions = [lambda: artifact.wait(30), run.finish]
    """
    server.fail(403, path=lambda request: request.method == "PUT")
    artifact, finish = attempts(server, tmp_path, code)
    assert artifact.startswith("ValueError") and finish == "fine"
    assert (server.run("first").state, server.run("first").files) == ("finished", {})
    assert [artifact.version for artifact in server.artifacts] == [None]


def test_lines_sent_twice_are_there_once(recorded):
    run = recorded.run("first")
    before = run.history
    part = {"offset": 1, "content": run.lines("wandb-history.jsonl")[1:]}
    with closing(connect(recorded)) as connection:
        message = {"files": {"wandb-history.jsonl": part}}
        assert ask(connection, "/files/tester/ladders/first/file_stream", message) == 200
    assert len(before) == 3 and run.history == before


def test_faults_hit_the_requests_they_are_meant_for(server):
    with closing(connect(server)) as connection:
        server.fail(503, times=2, path="/graphql", after=1)
        assert [ask(connection) for _ in range(5)] == [200, 503, 503, 200, 200]
        server.fail(403, path="/file_stream")
        assert [ask(connection), ask(connection, "/file_stream")] == [200, 403]
        server.delay(0.3, path="/graphql")
        start = time.monotonic()
        ask(connection, "/file_stream")
        assert time.monotonic() - start < 0.3
        ask(connection)
        assert time.monotonic() - start >= 0.3
        server.clear_faults()
        assert ask(connection) == 200
    assert server.requests[-2:] == [("POST", "/graphql", "Viewer")] * 2


def test_what_nobody_may_or_can_have_is_refused(server):
    with closing(connect(server)) as connection:
        assert ask(connection, key="another") == 401
        assert ask(connection, "/no/such/run/file_stream") == 404
        assert ask(connection, "/nowhere") == 404


def test_a_client_that_leaves_early_is_no_error(server, capfd):
    with closing(connect(server)) as connection:
        connection.connect()
        reset = struct.pack("ii", 1, 0)  # end without a goodbye
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connection.send(b"POST ")
    with closing(connect(server)) as connection:
        assert ask(connection) == 200
    assert capfd.readouterr() == ("", "")


def test_the_server_ends_with_its_block():
    with WandbServer() as server:
        kept = connect(server)
        assert ask(kept) == 200
    for connection in (kept, connect(server)):
        with closing(connection), pytest.raises(ConnectionError):
            ask(connection)
