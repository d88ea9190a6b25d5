"""Uploads of checkpoints to a W&B run, in the background and verified."""

import logging
import time
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

from utils.files import copy_file, link_file
from utils.tracking.sinks import METRICS
from utils.tracking.wandb_client import RUN_CHECKPOINT, TRIES, api, client, md5
from utils.tracking.wandb_fetch import run_version

log = logging.getLogger("ladder_vae")
CLOSE_TIMEOUT = 30  # seconds that a run waits for its uploads when it ends
ARTIFACT_TIMEOUT = 3600  # seconds for one checkpoint while the run goes on
INTERVAL = 1800.0  # seconds between uploads while a run goes on
VISIBLE_AFTER = 8  # seconds until W&B shows a small file; a large one takes …
MIN_RATE = 1e6  # … up to a second more for so many bytes


class CheckpointUploads:
    """The newest checkpoints of a run, uploaded now and then by one thread after another.

    run: the client's. name: of the artifact. folder: the run's. error: why the last upload failed.
    """

    def __init__(self, run: Any, name: str, folder: Path):
        self.run, self.name, self.folder = run, name, folder
        self.error: Exception | None = None
        self._pending: dict[str, tuple[Path, dict]] = {}  # by alias: file and metadata
        self._thread: Thread | None = None
        self._last_start = time.monotonic()

    @property
    def run_path(self) -> str:
        """entity/project/run_id."""
        return f"{self.run.entity}/{self.run.project}/{self.run.id}"

    def add(self, alias: str, path: Path, metadata: dict) -> None:
        """A new checkpoint, `best` or `last`; online runs upload at most every INTERVAL."""
        self._pending[alias] = (path, metadata)
        idle = self._thread is None or not self._thread.is_alive()
        if idle and time.monotonic() - self._last_start > INTERVAL:
            self.start_online()

    def start_online(self) -> None:
        """Upload what is pending now, unless the run is offline."""
        if self._pending and not self.run.offline:
            self._start()

    def close(self) -> None:
        """Upload what is pending, and wait for CLOSE_TIMEOUT at most; see `error` afterwards."""
        if self._pending:
            self._start()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT)
            if self._thread.is_alive() and self.error is None:
                self.error = TimeoutError(f"no end of it in {CLOSE_TIMEOUT} s")

    def _start(self) -> None:
        batch, self._pending, self._last_start = self._pending, {}, time.monotonic()
        self._thread = Thread(target=self._upload, args=(batch, self._thread), daemon=True)
        self._thread.start()

    def _upload(self, batch: dict[str, tuple[Path, dict]], previous: Thread | None) -> None:
        """After the previous upload: try several times; what fails is pending again.

        Checkpoints become versions of one artifact; the last one and the metrics also become files
        of the run.
        """
        if previous is not None:
            previous.join()
        remaining = dict(batch)
        for attempt in range(TRIES):
            try:
                self._try_upload(remaining, batch.get("last"))
                self.error = None
                return
            except Exception as error:
                log.exception("W&B upload, try %d", attempt + 1)
                self.error = error
                time.sleep(2.0**attempt)
        for alias, item in batch.items():
            self._pending.setdefault(alias, item)  # unless there is a newer one

    def _try_upload(self, remaining: dict, last: tuple[Path, dict] | None) -> None:
        """Upload everything, removing from `remaining` what has arrived."""
        saved = []
        if last:
            files = {METRICS: self.folder / METRICS, RUN_CHECKPOINT: last[0]}
            saved = [self._save_file(path, name) for name, path in files.items()]
        for alias, (path, metadata) in list(remaining.items()):
            self._log_artifact(alias, path, metadata)
            del remaining[alias]
        for path in saved:
            self._verify_file(path)

    def _log_artifact(self, alias: str, path: Path, metadata: dict) -> None:
        """Upload a new version of the artifact, and verify it; offline it is kept for later."""
        # A name of its own, which costs no space: the checkpoint's is given to the next one.
        held = link_file(path, self.folder / "wandb" / "data" / f"{alias}-{token_hex(4)}.pth")
        try:
            self._log_file(alias, held, metadata)
        finally:
            if not self.run.offline:
                held.unlink()

    def _log_file(self, alias: str, held: Path, metadata: dict) -> None:
        artifact = client().Artifact(self.name, type="model", metadata=metadata)
        whole = {"policy": "immutable", "skip_cache": True}  # else the client copies it
        entry = artifact.add_file(str(held), name=f"{alias}.pth", **whole)
        artifact.metadata.update(md5=entry.digest, bytes=entry.size)
        own_alias = f"{alias}-{self.run.id}"  # runs with the same settings share the artifact
        self.run.log_artifact(artifact, aliases=[alias, own_alias])
        if self.run.offline:
            return
        artifact.wait(timeout=ARTIFACT_TIMEOUT)
        remote = run_version(api(), self.run_path, self.name, alias)
        if remote is None or (remote.digest, remote.size) != (entry.digest, entry.size):
            raise OSError(f"W&B has another {self.name}:{own_alias} than it was sent")

    def _save_file(self, path: Path, name: str) -> Path:
        """Put a file among the run's files, which the client uploads in its own time."""
        put = copy_file if name == METRICS else link_file  # rows are appended to the former
        file = put(path, Path(self.run.dir, name))
        self.run.save(str(file), self.run.dir, policy="now")
        return file

    def _verify_file(self, path: Path) -> None:
        """Wait until W&B has a file of the run.

        Raises:
            OSError: if it has not within the time that the file's size allows.
        """
        if self.run.offline:
            return
        sent, timeout = md5(path), VISIBLE_AFTER + path.stat().st_size / MIN_RATE
        deadline = time.monotonic() + timeout
        while api().run(self.run_path).file(path.name).md5 != sent:
            if time.monotonic() > deadline:
                raise OSError(f"W&B does not show {path.name} {timeout:.0f} s after it was sent")
            time.sleep(0.5)
