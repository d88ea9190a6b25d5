"""Uploads to a W&B run that take long: in the background, verified, and nothing twice."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

from utils.files import copy_file, link_file
from utils.tracking.sinks import METRICS
from utils.tracking.wandb_client import (
    RUN_CHECKPOINT,
    TRIES,
    api,
    artifact_name,
    client,
    md5,
    wait_until_shown,
)
from utils.tracking.wandb_fetch import run_version

log = logging.getLogger("ladder_vae")
CLOSE_TIMEOUT = 30  # seconds that a run waits for its uploads when it ends
ARTIFACT_TIMEOUT = 3600  # seconds for one checkpoint while the run goes on
INTERVAL = 1800.0  # seconds between uploads while a run goes on
VISIBLE_AFTER = 8  # seconds until W&B shows a small file; a large one takes …
MIN_RATE = 1e6  # … up to a second more for so many bytes


class Uploads:
    """The newest checkpoints of a run and what else is added, by one thread after another.

    run: the client's. name, folder: the run's. error: why the last upload failed.
    """

    def __init__(self, run: Any, name: str, folder: Path):
        self.run, self.name, self.folder = run, name, folder
        self.error: Exception | None = None
        self._pending: dict[str, Callable[[], None]] = {}
        self._failed: dict[str, Callable[[], None]] = {}  # to be tried again with the next
        self._thread: Thread | None = None
        self._last_start = time.monotonic()

    @property
    def run_path(self) -> str:
        """entity/project/run_id."""
        return f"{self.run.entity}/{self.run.project}/{self.run.id}"

    def add(self, name: str, upload: Callable[[], None]) -> None:
        """What is to be uploaded, in place of what of this name still waits."""
        self._pending[name] = upload

    def add_checkpoint(self, alias: str, path: Path, metadata: dict) -> None:
        """A new checkpoint, `best` or `last`; online runs upload at most every INTERVAL."""
        self.add(alias, partial(self._upload_checkpoint, alias, path, metadata))
        idle = self._thread is None or not self._thread.is_alive()
        if idle and time.monotonic() - self._last_start > INTERVAL:
            self.start_online()

    def start_online(self) -> None:
        """Upload what is pending now, unless the run is offline."""
        if (self._pending or self._failed) and not self.run.offline:
            self.start()

    def close(self) -> None:
        """Upload what is pending, and wait for CLOSE_TIMEOUT at most; see `error` afterwards."""
        if self._pending or self._failed:
            self.start()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT)
            if self._thread.is_alive() and self.error is None:
                self.error = TimeoutError(f"no end of it in {CLOSE_TIMEOUT} s")

    def start(self) -> None:
        """Upload what is pending now; offline it goes to the record."""
        batch, self._pending, self._last_start = self._pending, {}, time.monotonic()
        self._thread = Thread(target=self._upload, args=(batch, self._thread), daemon=True)
        self._thread.start()

    def _upload(self, batch: dict[str, Callable[[], None]], previous: Thread | None) -> None:
        """After the previous upload: try several times, with what failed before."""
        if previous is not None:
            previous.join()
        batch = {**self._failed, **batch}  # of a name the newer one
        self._failed = {}
        for attempt in range(TRIES):
            error = None
            for name, upload in list(batch.items()):
                try:
                    upload()
                    del batch[name]
                except Exception as failure:
                    log.exception("W&B upload of %s, try %d", name, attempt + 1)
                    error = failure
            self.error = error
            if not batch:
                return
            time.sleep(2.0**attempt)
        self._failed = batch

    def _upload_checkpoint(self, alias: str, path: Path, metadata: dict) -> None:
        """A version of the checkpoint's artifact; the last and the metrics are run files too."""
        saved = []
        if alias == "last":
            files = {METRICS: self.folder / METRICS, RUN_CHECKPOINT: path}
            saved = [self._save_file(source, name) for name, source in files.items()]
        if not self._has_version(alias, path):
            self._log_artifact(alias, path, metadata)
        for file in saved:
            self._verify_file(file)

    def _has_version(self, alias: str, path: Path) -> bool:
        """Whether W&B has this checkpoint already."""
        if self.run.offline:
            return False
        remote = run_version(api(), self.run_path, self.name, alias)
        return remote is not None and remote.md5 == md5(path)

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
        name, described = artifact_name(self.run.id, alias), f"{alias} checkpoint of {self.name}"
        artifact = client().Artifact(name, "model", description=described, metadata=metadata)
        whole = {"policy": "immutable", "skip_cache": True}  # else the client copies it
        entry = artifact.add_file(str(held), name=f"{alias}.pth", **whole)
        artifact.metadata.update(md5=entry.digest, bytes=entry.size)
        self.run.log_artifact(artifact)
        if self.run.offline:
            return
        artifact.wait(timeout=ARTIFACT_TIMEOUT)
        remote = run_version(api(), self.run_path, self.name, alias)
        if remote is None or (remote.digest, remote.size) != (entry.digest, entry.size):
            raise OSError(f"W&B has another {name} than it was sent")

    def _save_file(self, path: Path, name: str) -> Path:
        """Put a file among the run's files, which the client uploads in its own time."""
        put = copy_file if name == METRICS else link_file  # rows are appended to the former
        file = put(path, Path(self.run.dir, name))
        if not self._has_file(file):
            self.run.save(str(file), self.run.dir, policy="now")
        return file

    def _has_file(self, path: Path) -> bool:
        """Whether W&B has this file of the run, byte for byte."""
        return not self.run.offline and api().run(self.run_path).file(path.name).md5 == md5(path)

    def _verify_file(self, path: Path) -> None:
        """Wait until W&B has a file of the run.

        Raises:
            OSError: if it has not within the time that the file's size allows.
        """
        if self.run.offline:
            return
        timeout = VISIBLE_AFTER + path.stat().st_size / MIN_RATE
        wait_until_shown(lambda: [] if self._has_file(path) else [path.name], timeout)
