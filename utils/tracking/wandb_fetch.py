"""Checkpoints and metrics fetched from W&B: verified, and cached by digest."""

import base64
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.files import copy_file
from utils.terminal import one_line
from utils.tracking.sinks import METRICS
from utils.tracking.wandb_client import (
    RUN_CHECKPOINT,
    TRIES,
    api,
    artifact_name,
    find_artifact,
    md5,
)

log = logging.getLogger("ladder_vae")
REMOTE_NAME = re.compile(r"(?P<run>[\w.-]+/[\w.-]+/[\w.-]+)(:(?P<alias>[\w.-]+))?")

ALIASES = ("best", "last")


class UnsafePath(Exception):
    """An artifact names a file outside the folder that it is downloaded to."""


def is_remote(source: str | Path) -> bool:
    """Whether a checkpoint's name is one of W&B: entity/project/run_id or …/artifact:alias."""
    return not Path(source).expanduser().exists() and bool(REMOTE_NAME.fullmatch(str(source)))


def fetch(source: str, cache: Path, local: list[Path]) -> Path:
    """The checkpoint of a W&B run (its best, else its last) or artifact.

    local: files to use instead of a download if one of them is the same. Where W&B cannot be
    reached, the most recently used cached copy is returned, with a warning.

    Raises:
        ValueError: if there is no such checkpoint, or it cannot be downloaded completely.
    """
    name, file_name = REMOTE_NAME.fullmatch(source), _file_name(source)
    try:
        remote = _find(api(), name["run"], name["alias"])
    except UnsafePath as error:
        raise ValueError(f"checkpoint={source}: {error}.") from error
    except Exception as error:
        return _newest_copy(source, cache, error)
    if remote is None:
        raise ValueError(
            f"checkpoint={source} is a W&B run without {RUN_CHECKPOINT} or an artifact of "
            "checkpoints: name another, or an artifact entity/project/name:alias."
        )
    for path in local:
        if path.is_file() and remote.md5 and remote.matches(path):  # its size alone tells little
            return path
    return _download(remote, f"checkpoint={source}", cache, file_name)


def _newest_copy(source: str, cache: Path, error: Exception) -> Path:
    """The copy of a checkpoint to use where W&B cannot be reached, because of `error`."""
    copies = sorted(cache.glob(f"*/{_file_name(source)}"), key=lambda path: path.stat().st_mtime)
    if copies:
        text = f"W&B could not be asked ({one_line(error)}): this is the copy fetched last."
        warnings.warn(f"checkpoint={source}: {text}", stacklevel=3)
        return copies[-1]
    raise ValueError(
        f"checkpoint={source} is neither a file nor a W&B run or artifact that can be read "
        f"({one_line(error)}): check the name, the network and `wandb login`."
    ) from error


@dataclass(frozen=True)
class FetchedRun:
    """A W&B run: its identity, and its files in the cache (None where it has none)."""

    entity: str
    project: str
    run_id: str
    last: Path
    best: Path | None
    metrics: Path | None


def fetch_run(run: str, setup: dict, cache: Path) -> FetchedRun:
    """All files needed to resume a run, given its id in wandb.setup's project or its full name.

    Raises:
        ValueError: if W&B has no such run with a checkpoint, or it cannot be downloaded completely.
    """
    named = f"train.resume_id={run}"
    try:
        server = api()
        if run.count("/") < 2:
            entity = setup["entity"] or os.environ.get("WANDB_ENTITY") or server.default_entity
            run = f"{entity}/{run}" if "/" in run else f"{entity}/{setup['project']}/{run}"
        logged = server.run(run)
        files = {
            "last": run_version(server, run, logged.name, "last")
            or _run_file(logged, RUN_CHECKPOINT),
            "best": run_version(server, run, logged.name, "best"),
            "metrics": _run_file(logged, METRICS),
        }
    except Exception as error:
        raise ValueError(
            f"{named} is neither of a run in runs_dir nor of one at W&B ({one_line(error)}): check "
            "the id, wandb.setup, the network and `wandb login`."
        ) from error
    if files["last"] is None:
        raise ValueError(f"{named} is of the W&B run {run}, which has no checkpoint to go on from.")
    paths = {
        name: remote and _download(remote, named, cache, _file_name(f"{run}:{name}"))
        for name, remote in files.items()
    }
    return FetchedRun(*run.split("/"), **paths)


@dataclass(frozen=True)
class RemoteFile:
    """A file at W&B."""

    digest: str  # in base64, by W&B's own hash
    md5: str | None  # in base64
    size: int  # bytes
    download: Callable[[str], str]  # into a folder; returns the file's path

    def matches(self, path: Path) -> bool:
        """Whether a local file is a complete copy of this one."""
        return path.stat().st_size == self.size and self.md5 in (None, md5(path))


def run_version(server: Any, run: str, name: str, alias: str) -> RemoteFile | None:
    """A run's own best or last checkpoint; None where there is none. name: the run's."""
    artifact = run_artifact(server, run, name, alias)
    return artifact and in_artifact(artifact)


def run_artifact(server: Any, run: str, name: str, alias: str) -> Any | None:
    """The artifact of a run's best or last checkpoint; None where there is none.

    name: the run's, which earlier versions gave to one artifact of both, with aliases.
    """
    project, _, run_id = run.rpartition("/")
    paths = (f"{artifact_name(run_id, alias)}:latest", f"{name}:{alias}-{run_id}")
    found = (find_artifact(server, f"{project}/{path}") for path in paths)
    return next((one for one in found if one is not None), None)


def _find(server: Any, run: str, alias: str | None) -> RemoteFile | None:
    """The checkpoint of a run, or of an artifact with this alias; None where there is none."""
    if alias is not None:
        return in_artifact(server.artifact(f"{run}:{alias}"))
    logged = server.run(run)
    return run_version(server, run, logged.name, "best") or _run_file(logged, RUN_CHECKPOINT)


def in_artifact(artifact: Any) -> RemoteFile | None:
    """The only checkpoint in an artifact; this project records its MD5 in the metadata."""
    names = [name for name in artifact.manifest.entries if name.endswith((".pth", ".pt"))]
    if len(names) != 1:
        return None
    if Path(names[0]).is_absolute() or ".." in Path(names[0]).parts:
        raise UnsafePath(f"its file {names[0]} lies outside the artifact, and was not fetched")
    entry = artifact.get_entry(names[0])

    def download(folder: str) -> str:
        artifact.download(folder, skip_cache=True, path_prefix=names[0])
        return str(Path(folder, names[0]))

    return RemoteFile(entry.digest, artifact.metadata.get("md5"), entry.size, download)


def _run_file(run: Any, name: str) -> RemoteFile | None:
    """A file of a run; None where it has none of this name."""
    file = run.file(name)
    if not file.size:
        return None
    return RemoteFile(
        file.md5, file.md5, file.size, lambda folder: file.download(folder, replace=True).name
    )


def _file_name(source: str) -> str:
    return source.replace("/", "-").replace(":", "-") + ".pth"


def _download(remote: RemoteFile, named: str, cache: Path, name: str) -> Path:
    """The file's copy in the cache, downloaded if missing; completely or not at all."""
    folder = cache / base64.b64decode(remote.digest).hex()
    cached = folder / name
    if cached.exists() and remote.matches(cached):
        os.utime(cached)  # now the most recently used of its name
        return cached
    reason = "unknown"
    for attempt in range(TRIES):
        with tempfile.TemporaryDirectory(prefix="fetching-") as temporary:
            try:
                path = Path(remote.download(temporary))
                if remote.matches(path):
                    folder.mkdir(parents=True, exist_ok=True)
                    return copy_file(path, cached)
                reason = f"{path.stat().st_size:,} of {remote.size:,} bytes, or other ones"
            except Exception as error:
                reason = one_line(error)
        log.info("%s, try %d: %s", named, attempt + 1, reason)
    raise ValueError(
        f"{named} could not be fetched whole from W&B in {TRIES} tries ({reason}): try again later."
    )
