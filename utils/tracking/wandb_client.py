"""W&B: a run's mirror there, and what is fetched from there. The only module that calls it."""

import base64
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from torch import nn

from utils.terminal import one_line
from utils.tracking.sinks import METRICS, Sink
from utils.tracking.wandb_offline import Records
from utils.version import code_version

log = logging.getLogger("ladder_vae")
INIT_TIMEOUT = 20  # seconds for the W&B server to answer
UPLOAD_TIMEOUT = 30  # seconds that a run waits for its checkpoints' upload when it ends …
FINISH_TIMEOUT = 20  # … and for everything else
ONE_UPLOAD = 3600  # seconds that one checkpoint may take while the run goes on
UPLOAD_EVERY = 1800.0  # seconds between uploads while a run goes on
ARRIVAL = 8  # seconds until W&B shows a small file that it was sent; a large one may take …
SLOWEST = 1e6  # … a second more for so many bytes
TRIES = 3  # of a download or an upload
RUN_FILE = "last_chpt.pth"  # the name that the published code gives its checkpoints
WATCH_EVERY = 100  # optimiser steps between histograms of gradients
ROWS, FINAL = 10, 5  # positions in W&B's history per optimiser step; the first after training
OWN_DATA_DIR = os.environ.get("WANDB_DATA_DIR")
REMOTE = re.compile(r"(?P<run>[\w.-]+/[\w.-]+/[\w.-]+)(:(?P<alias>[\w.-]+))?")


class WandbSink(Sink):
    """A W&B run through the real client.

    settings: the wandb group. folder, name, run_id, config: the run's. tell: says a line.

    Every row has a position in W&B's history that follows from its step, so that what W&B has
    already is not sent again and what it lacks is, wherever a run was cut off.
    """

    def __init__(
        self,
        settings: dict,
        folder: Path,
        name: str,
        run_id: str,
        config: dict,
        model: nn.Module | None,
        mode: str,
        tell: Callable[[str], None],
    ):
        wandb = _client(settings["api_key"])
        self.wandb, self.tell, setup = wandb, tell, settings["setup"]
        if OWN_DATA_DIR is None:  # where artifacts wait: beside the run, not in the home folder
            os.environ["WANDB_DATA_DIR"] = str(folder / "wandb" / "data")
        if mode != "offline" and not wandb.login(prompt=False):
            if mode == "online":
                raise ValueError("no key: `wandb login`, WANDB_API_KEY or wandb.api_key=…")
            mode = "offline"
        mode = "online" if mode == "auto" else mode
        self.folder, self.name, self.records = folder, name, Records(folder)
        if mode == "offline":
            self.records.set_aside()
        wandb.teardown()  # a run that could not start leaves the client unable to start another
        self.run = wandb.init(
            entity=setup["entity"],
            project=setup["project"],
            group=settings["group"] or config["name"],
            job_type=settings["job_type"],
            tags=settings["tags"],
            notes=settings["notes"],
            name=name,
            id=run_id,
            resume="allow",
            mode=mode,
            dir=str(folder),
            config={**config, "code": code_version()},
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
            ),
        )
        for key in ("epoch", "step"):
            self.run.define_metric(key)
        self.run.define_metric("*", step_metric="epoch")
        for key in ("val/loss", "val/nelbo"):
            self.run.define_metric(key, step_metric="epoch", summary="min")
        if settings["watch"] and model is not None:
            self.run.watch(model, log_freq=WATCH_EVERY)
        if self.run.offline:
            self.next = self.records.start(Path(self.run.dir).parent.name)
        else:
            self.next = self.run.starting_step
        self.first = self.next
        self.step, self.row = -1, 0  # of the last row
        self.waiting: dict[str, tuple[Path, dict]] = {}  # checkpoints not uploaded yet
        self.upload: Thread | None = None
        self.uploaded, self.trouble = time.monotonic(), None
        log.info("W&B run %s, %s, from position %d", run_id, mode, self.next)

    @property
    def path(self) -> str:
        """entity/project/run_id."""
        return f"{self.run.entity}/{self.run.project}/{self.run.id}"

    def begin(self, rows: list[dict]) -> None:
        """Send what W&B has not got."""
        for row in rows:
            self.log(row, row["epoch"], row["step"])

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """A row with epoch and step as columns."""
        self._row(lambda: values, epoch, step)

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """Pictures as figures/<name>."""
        image = self.wandb.Image
        self._row(lambda: {f"figures/{path.stem}": image(str(path)) for path in paths}, epoch, step)

    def histograms(self, values: dict[str, list[float]], epoch: int, step: int) -> None:
        """Histograms, one per key."""
        histogram = self.wandb.Histogram
        self._row(lambda: {key: histogram(some) for key, some in values.items()}, epoch, step)

    def page(self, path: Path, epoch: int, step: int) -> None:
        """An HTML page, as report."""
        self._row(lambda: {"report": self.wandb.Html(str(path), inject=False)}, epoch, step)

    def _row(self, values: Callable[[], dict], epoch: int, step: int) -> None:
        """The next row of this step, unless W&B has it."""
        if step != self.step:
            self.step, self.row = step, 0
        position = self.position(step) + self.row
        self.row += 1
        if position >= self.next:
            self.run.log({"epoch": epoch, "step": step, **values()}, step=position, commit=True)
            self.next = position + 1

    @staticmethod
    def position(step: int) -> int:
        """Of the first row of a step: its epoch's figures."""
        return ROWS * step

    def summary(self, values: dict) -> None:
        """The run's summary."""
        self.run.summary.update(values)

    def checkpoint(self, name: str, path: Path, facts: dict) -> None:
        """To be uploaded when the run ends; online also now and then, by a thread of its own."""
        self.waiting[name] = (path, facts)
        idle = self.upload is None or not self.upload.is_alive()
        if idle and not self.run.offline and time.monotonic() - self.uploaded > UPLOAD_EVERY:
            self._start_upload()

    def trained(self, step: int) -> None:
        """The final rows have positions of their own; a good time to upload what is waiting."""
        self.step, self.row = step, FINAL
        if self.waiting and not self.run.offline:
            self._start_upload()

    def _start_upload(self) -> None:
        waiting, self.waiting, self.uploaded = self.waiting, {}, time.monotonic()
        self.upload = Thread(target=self._upload, args=(waiting, self.upload), daemon=True)
        self.upload.start()

    def _upload(self, wanted: dict[str, tuple[Path, dict]], before: Thread | None) -> None:
        """Versions of one artifact, by alias; the last and the metrics also as files of the run.

        One upload after another. What cannot be uploaded waits for the next, unless that has newer.
        """
        if before is not None:
            before.join()
        waiting, last = dict(wanted), wanted.get("last")
        for attempt in range(TRIES):
            try:
                saved = []
                if last:
                    parts = {METRICS: self.folder / METRICS, RUN_FILE: last[0]}
                    saved = [self._save(path, name) for name, path in parts.items()]
                for name, (path, facts) in list(waiting.items()):
                    self._log_artifact(name, path, facts)
                    del waiting[name]
                for path in saved:
                    self._check_file(path)
                self.trouble = None
                return
            except Exception as error:
                log.exception("W&B upload, try %d", attempt + 1)
                self.trouble = error
                time.sleep(2.0**attempt)
        for name, item in wanted.items():
            self.waiting.setdefault(name, item)

    def _log_artifact(self, name: str, path: Path, facts: dict) -> None:
        """A new version, seen to be there whole."""
        artifact = self.wandb.Artifact(self.name, type="model", metadata=facts)
        entry = artifact.add_file(str(path), name=f"{name}.pth")  # copied: it may be replaced
        artifact.metadata.update(md5=entry.digest, bytes=entry.size)
        own = f"{name}-{self.run.id}"  # runs with the same settings share the artifact
        self.run.log_artifact(artifact, aliases=[name, own])
        if self.run.offline:
            return
        artifact.wait(timeout=ONE_UPLOAD)
        there = _version(_api(), self.path, self.name, name)
        if there is None or (there.digest, there.size) != (entry.digest, entry.size):
            raise OSError(f"W&B has another {self.name}:{own} than it was sent")

    def _save(self, path: Path, name: str) -> Path:
        """A copy of a file as a file of the run, which the client sends in its own time."""
        kept = Path(self.run.dir, name)
        os.replace(shutil.copyfile(path, kept.with_name(f"{name}.partial")), kept)
        self.run.save(str(kept), self.run.dir, policy="now")
        return kept

    def _check_file(self, path: Path) -> None:
        """Wait until W&B has a saved file."""
        if self.run.offline:
            return
        sent, patience = md5(path), ARRIVAL + path.stat().st_size / SLOWEST
        until = time.monotonic() + patience
        while _api().run(self.path).file(path.name).md5 != sent:
            if time.monotonic() > until:
                raise OSError(f"W&B does not show {path.name} {patience:.0f} s after it was sent")
            time.sleep(0.5)

    def close(self, failed: bool) -> None:
        """Upload what is waiting and finish the run."""
        if self.waiting:
            self._start_upload()
        if self.upload is not None:
            self.upload.join(UPLOAD_TIMEOUT)
            if self.upload.is_alive() and self.trouble is None:
                self.trouble = TimeoutError(f"no end of it in {UPLOAD_TIMEOUT} s")
        later = f"task=sync run={self.folder} uploads"
        if self.trouble is not None:
            reason = one_line(self.trouble)
            self.tell(f"W&B has not got the newest checkpoints ({reason}); {later} them.")
        elif self.run.offline:
            self.tell(f"Recorded for W&B offline; {later} it.")
        self.run.finish(exit_code=int(failed))
        if self.run.offline:
            self.records.end(self.next)

    def check_arrival(self) -> None:
        """After `close`: see that W&B has all rows and checkpoints.

        Raises:
            Exception: whatever is the reason why not.
        """
        if self.trouble is not None:
            raise self.trouble
        if self.next > self.first:  # else it had everything before
            last = _api().run(self.path).summary.get("_step", -1)
            if last < self.next - 1:
                raise OSError(f"its history ends at position {last}, before {self.next - 1}")
        self.records.end(self.next)


class OutsideError(Exception):
    """An artifact names a file outside of where it is put."""


def is_remote(source: str | Path) -> bool:
    """Whether a checkpoint's name is of W&B: entity/project/run_id or entity/project/name:alias."""
    return not Path(source).expanduser().exists() and bool(REMOTE.fullmatch(str(source)))


def fetch(source: str, cache: Path, local: list[Path]) -> Path:
    """The checkpoint of a W&B run (its best, else the last) or artifact.

    local: files that may be the same one; else it comes from the cache, else from W&B. Where W&B
    cannot be asked, the copy fetched last stands in for it, with a warning.

    Raises:
        ValueError: if there is none, or it cannot be fetched whole.
    """
    matched, kept = REMOTE.fullmatch(source), _file_name(source)
    try:
        found = _find(_api(), matched["run"], matched["alias"])
    except OutsideError as error:
        raise ValueError(f"checkpoint={source}: {error}.") from error
    except Exception as error:
        copies = sorted(cache.glob(f"*/{kept}"), key=lambda path: path.stat().st_mtime)
        if copies:
            text = f"W&B could not be asked ({one_line(error)}): this is the copy fetched last."
            warnings.warn(f"checkpoint={source}: {text}", stacklevel=2)
            return copies[-1]
        raise ValueError(
            f"checkpoint={source} is neither a file nor a W&B run or artifact that can be read "
            f"({one_line(error)}): check the name, the network and `wandb login`."
        ) from error
    if found is None:
        raise ValueError(
            f"checkpoint={source} is a W&B run without {RUN_FILE} or an artifact of checkpoints: "
            "name another, or an artifact entity/project/name:alias."
        )
    for path in local:
        if path.is_file() and found.is_in(path):
            return path
    return _download(found, f"checkpoint={source}", cache, kept)


@dataclass(frozen=True)
class FetchedRun:
    """A run as W&B has it: its place there and cached files, None where there is none."""

    entity: str
    project: str
    run_id: str
    last: Path
    best: Path | None
    metrics: Path | None


def fetch_run(run: str, setup: dict, cache: Path) -> FetchedRun:
    """All that going on with a run takes. run: its id in wandb.setup's project, or its whole name.

    Raises:
        ValueError: if W&B has no such run with a checkpoint, or it cannot be fetched whole.
    """
    named = f"train.resume_id={run}"
    try:
        api = _api()
        if "/" not in run:
            entity = setup["entity"] or os.environ.get("WANDB_ENTITY") or api.default_entity
            run = f"{entity}/{setup['project']}/{run}"
        logged = api.run(run)
        last = _version(api, run, logged.name, "last") or _run_file(logged, RUN_FILE)
        best, metrics = _version(api, run, logged.name, "best"), _run_file(logged, METRICS)
    except Exception as error:
        raise ValueError(
            f"{named} is neither of a run in runs_dir nor of one at W&B ({one_line(error)}): check "
            "the id, wandb.setup, the network and `wandb login`."
        ) from error
    if last is None:
        raise ValueError(f"{named} is of the W&B run {run}, which has no checkpoint to go on from.")
    files = {"last": last, "best": best, "metrics": metrics}
    paths = {
        name: found and _download(found, named, cache, _file_name(f"{run}:{name}"))
        for name, found in files.items()
    }
    return FetchedRun(*run.split("/"), **paths)


@dataclass(frozen=True)
class Stored:
    """A file as W&B has it."""

    digest: str  # in base64, by whatever W&B digests with
    md5: str | None  # in base64
    size: int  # bytes
    download: Callable[[str], str]  # into a folder; the file's path

    def is_in(self, path: Path) -> bool:
        """Whether a file is this one, whole."""
        return path.stat().st_size == self.size and self.md5 in (None, md5(path))


def _find(api: Any, run: str, alias: str | None) -> Stored | None:
    """The checkpoint that a name means; None where there is none."""
    if alias is not None:
        return _in_artifact(api.artifact(f"{run}:{alias}"))
    logged = api.run(run)
    return _version(api, run, logged.name, "best") or _run_file(logged, RUN_FILE)


def _version(api: Any, run: str, name: str, alias: str) -> Stored | None:
    """A run's own best or last checkpoint; None where there is no such artifact."""
    project, _, run_id = run.rpartition("/")
    try:
        return _in_artifact(api.artifact(f"{project}/{name}:{alias}-{run_id}"))
    except Exception as error:
        if "not found" in str(error):  # the client's words; else W&B could not be asked
            return None
        raise


def _in_artifact(artifact: Any) -> Stored | None:
    """The one checkpoint in an artifact; those of this project name its MD5 in their metadata."""
    names = [name for name in artifact.manifest.entries if name.endswith((".pth", ".pt"))]
    if len(names) != 1:
        return None
    if Path(names[0]).is_absolute() or ".." in Path(names[0]).parts:
        raise OutsideError(f"its file {names[0]} lies outside the artifact, and was not fetched")
    entry = artifact.get_entry(names[0])

    def download(place: str) -> str:
        artifact.download(place, skip_cache=True, path_prefix=names[0])
        return str(Path(place, names[0]))

    return Stored(entry.digest, artifact.metadata.get("md5"), entry.size, download)


def _run_file(run: Any, name: str) -> Stored | None:
    """A file of a run; None where it has none of this name."""
    file = run.file(name)
    if not file.size:
        return None
    return Stored(file.md5, file.md5, file.size, lambda to: file.download(to, replace=True).name)


def _file_name(source: str) -> str:
    return source.replace("/", "-").replace(":", "-") + ".pth"


def _download(found: Stored, named: str, cache: Path, name: str) -> Path:
    """A file into the cache, unless it is there: whole or not at all."""
    folder = cache / base64.b64decode(found.digest).hex()
    kept = folder / name
    if kept.exists() and found.is_in(kept):
        os.utime(kept)  # the newest of its name
        return kept
    reason = "unknown"
    for attempt in range(TRIES):
        with tempfile.TemporaryDirectory(prefix="fetching-") as place:
            try:
                path = Path(found.download(place))
                if found.is_in(path):
                    folder.mkdir(parents=True, exist_ok=True)
                    partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
                    shutil.copyfile(path, partial)
                    os.replace(partial, kept)
                    return kept
                reason = f"{path.stat().st_size:,} of {found.size:,} bytes, or other ones"
            except Exception as error:
                reason = one_line(error)
        log.info("%s, try %d: %s", named, attempt + 1, reason)
    raise ValueError(
        f"{named} could not be fetched whole from W&B in {TRIES} tries ({reason}): try again later."
    )


def upload_records(folder: Path, position: Callable[[int], int]) -> None:
    """`wandb sync` of a run's offline records, those that W&B has rows of already left out.

    position: brings W&B up to a position, gives where its history ends then.
    """
    records = Records(folder)
    for record, first in sorted(records.first.items(), key=lambda item: item[1]):
        if records.synced(record) or position(first) > first:
            continue
        command = [sys.executable, "-m", "wandb", "sync", str(records.folder / record)]
        found = subprocess.run(command, capture_output=True, text=True)
        log.info("wandb sync: %s %s", found.stdout, found.stderr)


def md5(path: Path) -> str:
    """MD5 of a file in base64, as W&B gives it."""
    with open(path, "rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()


def _api() -> Any:
    return _client(None).Api(timeout=INIT_TIMEOUT)


def _client(api_key: str | None) -> Any:
    """The W&B package, told to be quiet; importing it takes a second."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_X_DISABLE_VIEWER", "true")
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")  # a kill loses no more
    if api_key:
        os.environ["WANDB_API_KEY"] = api_key
    logging.raiseExceptions = False  # else its log on a full disk floods the terminal
    import wandb

    return wandb
