"""A W&B server for tests: on this machine only, everything in memory, gone with its block.

It answers what the real client asks while it records runs, files and artifacts, resumes a run, or
reads any of that back. On request it answers badly: `fail`, `delay`, `cut` and `corrupt`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

ENTITY = "tester"
API_KEY = "0123456789" * 4  # the client refuses shorter ones
AUTHORIZATION = "Basic " + base64.b64encode(f"api:{API_KEY}".encode()).decode()
FOLDERS = ["WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"]
FOLDERS += ["WANDB_ARTIFACT_DIR", "TMPDIR", "HOME"]
HISTORY, EVENTS = "wandb-history.jsonl", "wandb-events.jsonl"
SUMMARY, OUTPUT = "wandb-summary.json", "output.log"
MANIFEST = "wandb_manifest.json"
SEQUENCE = {"__typename": "ArtifactSequence"}
LONG_AGO = "2024-01-01T00:00:00Z"  # no client looks at these times


class WandbServer:
    """A context manager: within its block the server answers at `url`."""

    def __init__(self):
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.sweeps: dict[str, tuple[str, list[dict]]] = {}  # config, commands for the agent
        self.requests: list[Request] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def __enter__(self) -> WandbServer:
        self._listener = _Listener(self)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()
        self._listener.hang_up()

    def environment(self, folder: Path) -> dict[str, str]:
        """The variables with which a client keeps to this server and to `folder`."""
        folders = {name: folder / name.lower() for name in FOLDERS}
        for path in folders.values():
            path.mkdir(parents=True, exist_ok=True)
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": API_KEY,
            "WANDB_ENTITY": ENTITY,
            "WANDB_ERROR_REPORTING": "false",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",  # where both are set, Python reads this one
            **{name: str(path) for name, path in folders.items()},
        }

    def run(self, id: str) -> Run:
        """The run with this id."""
        return self.runs[id]

    def artifact(self, path: str) -> Artifact:
        """The version that entity/project/name:alias means; an alias may be v0, v1, …"""
        collection, _, alias = path.partition(":")
        for artifact in self.artifacts:
            names = [artifact.version, *artifact.aliases] if artifact.version else []
            if artifact.collection == collection and alias in names:
                return artifact
        raise LookupError(f"no artifact {path}")

    def fail(
        self,
        status: int = 500,
        times: int | None = None,
        path: Match = "",
        after: int | None = None,
    ) -> None:
        """Refuse matching requests: the next `times` (None: all), after the first `after`."""
        self._faults.append(Fault(path, status=status, times=times, after=after or 0))

    def delay(self, seconds: float, path: Match = "") -> None:
        """Answer matching requests late."""
        self._faults.append(Fault(path, seconds=seconds))

    def cut(self, path: Match, after_bytes: int) -> None:
        """Hang up on matching downloads after so many bytes of the body."""
        self._faults.append(Fault(path, cut=after_bytes))

    def corrupt(self, path: Match) -> None:
        """Flip the middle byte of matching downloads."""
        self._faults.append(Fault(path, corrupt=True))

    def clear_faults(self) -> None:
        """Answer well again."""
        self._faults.clear()

    def answer(self, method: str, path: str, authorization: str | None, body: bytes) -> Reply:
        """The reply to one request, with what should go wrong with it."""
        message = json.loads(body) if method == "POST" else {}
        named = re.search(r"(?:query|mutation)\s+(\w+)", message.get("query", ""))
        request = Request(method, path, named and named[1])
        with self._lock:
            self.requests.append(request)
            faults = [fault for fault in self._faults if fault.strikes(request)]
        time.sleep(sum(fault.seconds for fault in faults))
        statuses = [fault.status for fault in faults if fault.status]
        if statuses:
            return _refusal(statuses[0])
        # Stored files have addresses of their own, open to all but for the download of a run's.
        secret = method == "POST" or (method == "GET" and path.startswith("/run-files/"))
        if secret and authorization != AUTHORIZATION:
            return _refusal(401)
        with self._lock:
            try:
                reply = self._answer(request, message, body)
            except (LookupError, ValueError):  # left without a reply, the client asks for minutes
                return _refusal(404)
        if method == "GET":
            for fault in faults:
                fault.damage(reply)
        return reply

    def _answer(self, request: Request, message: dict, body: bytes) -> Reply:
        if request.path == "/graphql":
            return self._graphql(request.operation, message.get("variables") or {})
        if request.path.endswith("/file_stream"):
            return self._file_stream(request.path.split("/")[-2], message)
        kind, owner, name = unquote(request.path).lstrip("/").split("/", 2)
        stored = self._stored(kind, owner)
        if request.method == "PUT":
            stored[name] = body
        return Reply(200, stored[name] if request.method == "GET" else b"")

    def _graphql(self, operation: str, variables: dict) -> Reply:
        try:
            found = {"data": OPERATIONS[operation](self, variables)}
        except LookupError as error:
            found = {"data": None, "errors": [{"message": f"{operation}: {error!r}"}]}
        return Reply(200, json.dumps(found).encode())

    def _file_stream(self, id: str, message: dict) -> Reply:
        """Lines go where their offset says: sent twice, they are there once."""
        run = self.runs[id]
        for name, part in message.get("files", {}).items():
            start, content = part["offset"], part["content"]
            run.lines(name)[start : start + len(content)] = content
        if message.get("complete"):
            run.exit_code = message["exitcode"]
            run.state = "failed" if run.exit_code else "finished"
        return Reply(200, b'{"exitcode": null, "limits": {}}')

    def address(self, kind: str, owner: str, name: str) -> str:
        """Where a file is sent to and fetched from."""
        return f"{self.url}/{kind}/{owner}/{quote(name)}"

    def _stored(self, kind: str, owner: str) -> dict[str, bytes]:
        """The files behind an address."""
        if kind == "run-files":
            return self.runs[owner].files
        artifact = self.artifact_by_id(owner)
        return {"artifact-files": artifact.files, "manifests": artifact.manifests}[kind]

    def artifact_by_id(self, id: str) -> Artifact:
        """An artifact, committed or not."""
        for artifact in self.artifacts:
            if artifact.id == id:
                return artifact
        raise LookupError(f"no artifact with id {id}")


@dataclass
class Run:
    """A run. Its streams are lines, by file name; its settings are as the client sends them."""

    id: str
    entity: str
    project: str
    display_name: str
    group: str | None = None
    job_type: str | None = None
    used: list[Artifact] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    state: str = "running"
    exit_code: int | None = None
    settings: dict = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def config(self) -> dict:
        """The user's settings, without the client's own."""
        return {key: item["value"] for key, item in self.settings.items() if key != "_wandb"}

    @property
    def history(self) -> list[dict]:
        """The logged rows, in order of arrival."""
        return [json.loads(line) for line in self.lines(HISTORY)]

    @property
    def events(self) -> list[dict]:
        """What the client measured on its machine."""
        return [json.loads(line) for line in self.lines(EVENTS)]

    @property
    def summary(self) -> dict:
        """The last value of everything, and what was set by hand."""
        return json.loads((self.lines(SUMMARY) or ["{}"])[-1])

    @property
    def output(self) -> list[str]:
        """What the process printed, each line behind its time."""
        return self.lines(OUTPUT)

    def lines(self, name: str) -> list[str]:
        """A stream so far."""
        return self.streams.setdefault(name, [])


@dataclass
class Artifact:
    """One version of an artifact; `version` is None until it is committed."""

    id: str
    entity: str
    project: str
    name: str
    type: str
    description: str | None
    metadata: dict
    aliases: list[str]
    digest: str
    version: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)

    @property
    def collection(self) -> str:
        """What its versions have in common."""
        return f"{self.entity}/{self.project}/{self.name}"

    @property
    def manifest(self) -> dict:
        """The client's list of its files."""
        return json.loads(self.manifests[MANIFEST])


class Request(NamedTuple):
    """One request as it came in; `operation` is the name of a GraphQL operation."""

    method: str
    path: str
    operation: str | None


Match = str | Callable[[Request], bool]  # a part of the path, or a test of the whole request


@dataclass
class Reply:
    """What goes back; with `cut`, only so many bytes of the body."""

    status: int
    body: bytes = b""
    cut: int | None = None


def _refusal(status: int) -> Reply:
    return Reply(status, json.dumps({"errors": [{"message": f"refused: {status}"}]}).encode())


@dataclass
class Fault:
    """What goes wrong with matching requests: the next `times`, after the first `after`."""

    match: Match
    seconds: float = 0
    status: int | None = None
    cut: int | None = None
    corrupt: bool = False
    times: int | None = None
    after: int = 0

    def strikes(self, request: Request) -> bool:
        """Whether it hits this request, which counts."""
        match = self.match
        if not (match in request.path if isinstance(match, str) else match(request)):
            return False
        if self.after:
            self.after -= 1
            return False
        if self.times is not None:
            self.times -= 1
        return self.times is None or self.times >= 0

    def damage(self, reply: Reply) -> None:
        """Spoil a download."""
        if self.cut is not None:
            reply.cut = self.cut
        if self.corrupt:
            middle = len(reply.body) // 2
            flipped = bytes([reply.body[middle] ^ 255])
            reply.body = reply.body[:middle] + flipped + reply.body[middle + 1 :]


class _Listener(ThreadingHTTPServer):
    """Knows its open connections: clients keep them, and its threads would go on answering."""

    def __init__(self, wandb: WandbServer):
        self.wandb = wandb
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def hang_up(self) -> None:
        """End all connections."""
        for connection in list(self.connections):
            with suppress(OSError):  # it may end by itself just now
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *client) -> None:
        """A client that left early is no error of ours."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*client)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        authorization = self.headers.get("Authorization")
        reply = self.server.wandb.answer(self.command, self.path, authorization, body)
        self.send_response(reply.status)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("ETag", '"stored"')
        self.end_headers()
        self.wfile.write(reply.body[: reply.cut])
        self.close_connection = self.close_connection or reply.cut is not None

    do_POST = do_PUT = do_GET

    def log_message(self, *_) -> None:
        """Leave the tests' output alone; `requests` has it all."""


def _viewer(server: WandbServer, variables: dict) -> dict:
    user = {"id": "user", "entity": ENTITY, "username": ENTITY, "email": "tester@localhost"}
    return {"viewer": {**user, "flags": "{}", "teams": {"edges": []}}}


def _server_features(server: WandbServer, variables: dict) -> dict:
    return {"serverInfo": {"features": []}}


def _upsert_run(server: WandbServer, variables: dict) -> dict:
    """Start or continue a run, or change its settings."""
    id, entity, project = variables["name"], variables["entity"], variables["project"]
    inserted = id not in server.runs
    run = server.runs.setdefault(id, Run(id, entity, project, display_name=id))
    run.state, run.exit_code = "running", None
    run.display_name = variables["displayName"] or run.display_name
    run.group = variables["groupName"] or run.group
    run.job_type = variables["jobType"] or run.job_type
    if variables["tags"] is not None:
        run.tags = variables["tags"]
    if variables["config"] is not None:
        run.settings = json.loads(variables["config"])
    return {"upsertBucket": {"bucket": _run_fields(run), "inserted": inserted}}


def _resume_status(server: WandbServer, variables: dict) -> dict:
    run = _find_run(server, variables)
    return {"model": {"bucket": run and _run_fields(run)}}


def _read_run(server: WandbServer, variables: dict) -> dict:
    run = _find_run(server, variables)
    return {"project": {"run": run and _run_fields(run)}}


def _create_run_files(server: WandbServer, variables: dict) -> dict:
    id, files = variables["run"], []
    for name in variables["files"]:
        files.append({"name": name, "uploadUrl": server.address("run-files", id, name)})
    return {"createRunFiles": {"runID": id, "uploadHeaders": [], "files": files}}


def _read_run_files(server: WandbServer, variables: dict) -> dict:
    """A run's files, or the named ones: a missing one is listed too, without content."""
    run, nodes = server.run(variables["name"]), []
    for name in variables["fileNames"] or run.files:
        content = run.files.get(name)
        node = {"name": name, "url": server.address("run-files", run.id, name)}
        node["sizeBytes"] = len(content or b"")
        node["md5"] = "0" if content is None else _md5(content)
        node["mimetype"] = mimetypes.guess_type(name)[0]
        nodes.append(node)
    return {"project": {"run": {"fileCount": len(run.files), "files": _page(nodes)}}}


def _create_artifact(server: WandbServer, variables: dict) -> dict:
    """A new version; or the known one, if it has the same content."""
    given = variables["input"]
    artifact = Artifact(
        id=f"artifact-{len(server.artifacts)}",
        entity=given["entityName"],
        project=given["projectName"],
        name=given["artifactCollectionName"],
        type=given["artifactTypeName"],
        description=given["description"],
        metadata=json.loads(given["metadata"] or "{}"),
        aliases=[item["alias"] for item in given["aliases"]],
        digest=given["digest"],
    )
    versions = _versions(server, artifact)
    known = next((item for item in versions if item.digest == artifact.digest), None)
    if known:
        _move_aliases(server, artifact.aliases, known)
    else:
        server.artifacts.append(artifact)
    found = {"id": (known or artifact).id, "state": "COMMITTED" if known else "PENDING"}
    return {"createArtifact": {"artifact": {**found, "artifactSequence": {}}}}


def _create_manifest(server: WandbServer, variables: dict) -> dict:
    """Where to send the list of files; asked before and after the files are sent."""
    id = variables["artifactID"]
    address = server.address("manifests", id, variables["name"])
    file = {"id": id, "uploadUrl": address, "uploadHeaders": []}
    return {"createArtifactManifest": {"artifactManifest": {"id": id, "file": file}}}


def _create_artifact_files(server: WandbServer, variables: dict) -> dict:
    nodes = []
    for file in variables["input"]["artifactFiles"]:
        id, name = file["artifactID"], file["name"]
        address = server.address("artifact-files", id, name)
        node = {"storagePath": name, "uploadUrl": address, "uploadHeaders": []}
        nodes.append({**node, "artifact": {"id": id}})
    return {"createArtifactFiles": {"files": _page(nodes)}}


def _commit_artifact(server: WandbServer, variables: dict) -> dict:
    """All is sent: from here on it has a version and can be found."""
    artifact = server.artifact_by_id(variables["artifactID"])
    artifact.version = f"v{len(_versions(server, artifact))}"
    _move_aliases(server, artifact.aliases, artifact)
    return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}


def _artifact_by_id(server: WandbServer, variables: dict) -> dict:
    """What the client reads after a commit."""
    return {"artifact": _artifact_fields(server.artifact_by_id(variables["id"]))}


def _artifact_by_name(server: WandbServer, variables: dict) -> dict:
    try:
        path = "{entity}/{project}/{name}".format(**variables)
        found = _artifact_fields(server.artifact(path))
    except LookupError:
        return {"project": {"artifactCollectionMembership": None}}
    membership = {**found, "artifactCollection": found["artifactSequence"], "artifact": found}
    return {"project": {"artifactCollectionMembership": membership}}


def _use_artifact(server: WandbServer, variables: dict) -> dict:
    """A run names an artifact as its input."""
    run = server.run(variables["runName"])
    run.used.append(server.artifact_by_id(variables["artifactID"]))
    return {"useArtifact": {"artifact": _artifact_fields(run.used[-1])}}


def _read_manifest(server: WandbServer, variables: dict) -> dict:
    address = server.address("manifests", variables["id"], MANIFEST)
    return {"artifact": {"currentManifest": {"file": {"directUrl": address}}}}


def _read_artifact_files(server: WandbServer, variables: dict) -> dict:
    path = "{entity}/{project}/{collection}:{alias}".format(**variables)
    artifact, nodes = server.artifact(path), []
    for name in artifact.files:
        address = server.address("artifact-files", artifact.id, name)
        nodes.append({"name": name, "directUrl": address})
    membership = {"artifactMembership": {"files": _page(nodes)}}
    return {"project": {"artifactCollection": {**SEQUENCE, **membership}}}


def _find_run(server: WandbServer, variables: dict) -> Run | None:
    run = server.runs.get(variables["name"])
    place = variables["entity"], variables["project"]
    return run if run and (run.entity, run.project) == place else None


def _versions(server: WandbServer, artifact: Artifact) -> list[Artifact]:
    """The committed versions of its collection."""
    same = [a for a in server.artifacts if a.collection == artifact.collection]
    return [version for version in same if version.version]


def _move_aliases(server: WandbServer, aliases: list[str], target: Artifact) -> None:
    """An alias belongs to one version."""
    for version in _versions(server, target):
        version.aliases = [alias for alias in version.aliases if alias not in aliases]
    target.aliases += aliases


def _run_fields(run: Run) -> dict:
    """All that any operation asks of a run."""
    return {
        "id": run.id,
        "name": run.id,
        "project": _project_fields(run),
        "projectId": "1",
        "user": {"name": ENTITY, "username": ENTITY},
        "displayName": run.display_name,
        "state": run.state,
        "tags": run.tags,
        "config": json.dumps(run.settings),
        "wandbConfig": json.dumps({"t": 1}),
        "summaryMetrics": json.dumps(run.summary),
        "historyLineCount": len(run.history),
        "eventsLineCount": len(run.events),
        "logLineCount": len(run.output),
        "historyTail": json.dumps(run.lines(HISTORY)[-1:]),
        "eventsTail": json.dumps(run.lines(EVENTS)[-1:]),
    }


def _artifact_fields(artifact: Artifact) -> dict:
    """All that the client insists on."""
    sequence = {**SEQUENCE, "name": artifact.name, "project": _project_fields(artifact)}
    aliases = [{"id": alias, "alias": alias} for alias in artifact.aliases]
    return {
        "id": artifact.id,
        "artifactSequence": sequence,
        "artifactType": {"name": artifact.type},
        "versionIndex": int(artifact.version[1:]),
        "aliases": [{**alias, "artifactCollection": sequence} for alias in aliases],
        "tags": [],
        "description": artifact.description,
        "metadata": json.dumps(artifact.metadata),
        "state": "COMMITTED",
        "digest": artifact.digest,
        "size": sum(len(content) for content in artifact.files.values()),
        "fileCount": len(artifact.files),
        "createdAt": LONG_AGO,
        "updatedAt": LONG_AGO,
        "ttlDurationSeconds": -1,
        "ttlIsInherited": False,
        "historyStep": None,
        "commitHash": None,
    }


def _project_fields(owner: Run | Artifact) -> dict:
    entity = {"id": owner.entity, "name": owner.entity}
    return {"id": "1", "internalId": "1", "name": owner.project, "entity": entity}


def _page(nodes: list[dict]) -> dict:
    """The first and only page of a list."""
    edges = [{"cursor": str(number), "node": node} for number, node in enumerate(nodes)]
    return {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}


def _md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


def _read_sweep(server: WandbServer, variables: dict) -> dict:
    config, _ = server.sweeps[variables["sweep"]]
    return {"project": {"sweep": {"config": config, "runs": {"edges": []}}}}


def _create_agent(server: WandbServer, variables: dict) -> dict:
    return {"createAgent": {"agent": {"id": variables["sweep"]}}}


def _heartbeat(server: WandbServer, variables: dict) -> dict:
    """The agent's next run, when it has none; after the last, the end."""
    _, waiting = server.sweeps[variables["id"]]
    commands = []
    if variables["runState"] == "{}":
        commands = [waiting.pop(0) if waiting else {"type": "exit"}]
    return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}


# The client can do without any other: it takes an error for an answer.
OPERATIONS = {
    "Viewer": _viewer,
    "GetDefaultEntity": _viewer,
    "ServerFeaturesQuery": _server_features,
    "UpsertBucket": _upsert_run,
    "RunResumeStatus": _resume_status,
    "Run": _read_run,
    "CreateRunFiles": _create_run_files,
    "RunFiles": _read_run_files,
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": _create_manifest,
    "CreateArtifactFiles": _create_artifact_files,
    "CommitArtifact": _commit_artifact,
    "ArtifactByID": _artifact_by_id,
    "ArtifactMembershipByName": _artifact_by_name,
    "UseArtifact": _use_artifact,
    "FetchArtifactManifest": _read_manifest,
    "GetArtifactMembershipFileUrls": _read_artifact_files,
    "SweepWithRuns": _read_sweep,
    "CreateAgent": _create_agent,
    "Heartbeat": _heartbeat,
}
