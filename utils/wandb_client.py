"""W&B: a run's mirror there, and checkpoints fetched from there. The only module that calls it."""

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
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from utils.sinks import Sink

log = logging.getLogger("ladder_vae")
INIT_TIMEOUT = 20  # seconds for the W&B server to answer
UPLOAD_TIMEOUT = 30  # seconds that a run waits for its checkpoints' upload when it ends …
FINISH_TIMEOUT = 20  # … and for everything else
UPLOAD_EVERY = 1800.0  # seconds between uploads while a run goes on
TRIES = 3  # of a download
RUN_FILE = "last_chpt.pth"  # the name that the published code gives its checkpoints
OWN_DATA_DIR = os.environ.get("WANDB_DATA_DIR")
REMOTE = re.compile(r"(?P<run>[\w.-]+/[\w.-]+/[\w.-]+)(:(?P<alias>[\w.-]+))?")


class WandbSink(Sink):
    """A W&B run through the real client.

    settings: the wandb group. folder, name, run_id, config: the run's. tell: says a line.
    """

    def __init__(
        self,
        settings: dict,
        folder: Path,
        name: str,
        run_id: str,
        config: dict,
        model: nn.Module,
        mode: str,
        tell: Callable[[str], None],
    ):
        wandb = _client(settings["api_key"])
        self.wandb, self.tell, setup = wandb, tell, settings["setup"]
        if OWN_DATA_DIR is None:  # where artifacts wait: beside the run, not in the home folder
            os.environ["WANDB_DATA_DIR"] = str(folder / "wandb" / "data")
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False) else "offline"
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
            config=config,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT,
                finish_timeout=FINISH_TIMEOUT,
            ),
        )
        self.run.define_metric("epoch")
        self.run.define_metric("*", step_metric="epoch")
        self.run.define_metric("val/loss", step_metric="epoch", summary="min")
        if settings["watch"]:
            self.run.watch(model)
        self.name = name
        self.waiting: dict[str, tuple[Path, dict]] = {}  # checkpoints not uploaded yet
        self.uploader, self.upload = ThreadPoolExecutor(1), None
        self.uploaded = time.monotonic()
        log.info("W&B run %s, %s", run_id, mode)

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """A row with epoch and step as columns."""
        self.run.log({"epoch": epoch, "step": step, **values})

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """Pictures as figures/<name>."""
        images = {f"figures/{path.stem}": self.wandb.Image(str(path)) for path in paths}
        self.run.log({"epoch": epoch, "step": step, **images})

    def histograms(self, values: dict[str, list[float]], epoch: int, step: int) -> None:
        """Histograms, one per key."""
        made = {key: self.wandb.Histogram(numbers) for key, numbers in values.items()}
        self.run.log({"epoch": epoch, "step": step, **made})

    def page(self, path: Path, epoch: int, step: int) -> None:
        """An HTML page, as report."""
        self.run.log({"epoch": epoch, "step": step, "report": self.wandb.Html(str(path))})

    def summary(self, values: dict) -> None:
        """The run's summary."""
        self.run.summary.update(values)

    def checkpoint(self, name: str, path: Path, epoch: int, loss: float) -> None:
        """To be uploaded when the run ends; online also now and then, by a thread of its own."""
        self.waiting[name] = (path, {"epoch": epoch, "best_loss": loss})
        idle = self.upload is None or self.upload.done()
        if idle and not self.run.offline and time.monotonic() - self.uploaded > UPLOAD_EVERY:
            self._start_upload()

    def upload_checkpoints(self) -> None:
        """No more will come for now: a good time to upload what is waiting."""
        if self.waiting and not self.run.offline:
            self._start_upload()

    def _start_upload(self) -> None:
        waiting, self.waiting = self.waiting, {}
        self.uploaded = time.monotonic()
        self.upload: Future = self.uploader.submit(self._upload, waiting)

    def _upload(self, waiting: dict[str, tuple[Path, dict]]) -> None:
        """Versions of one artifact, by alias, and the last also as a file of the run."""
        for name, (path, metadata) in waiting.items():
            metadata = {**metadata, "md5": md5(path), "bytes": path.stat().st_size}
            artifact = self.wandb.Artifact(self.name, type="model", metadata=metadata)
            artifact.add_file(str(path), name=f"{name}.pth")
            self.run.log_artifact(artifact, aliases=[name])
            if not self.run.offline:
                artifact.wait(timeout=UPLOAD_TIMEOUT)
        if "last" in waiting:
            shutil.copyfile(waiting["last"][0], Path(self.run.dir, RUN_FILE))
            self.run.save(str(Path(self.run.dir, RUN_FILE)), self.run.dir, policy="now")

    def close(self, failed: bool) -> None:
        """Upload what is waiting and finish the run."""
        if self.waiting:
            self._start_upload()
        try:
            if self.upload is not None:
                self.upload.result(UPLOAD_TIMEOUT)
        except Exception as error:
            log.exception("W&B upload")
            self.tell(
                f"W&B has not got the newest checkpoints ({_reason(error)}); the run's folder has."
            )
        self.uploader.shutdown(wait=False, cancel_futures=True)
        self.run.finish(exit_code=int(failed))


def is_remote(source: str | Path) -> bool:
    """Whether a checkpoint's name is of W&B: entity/project/run_id or entity/project/name:alias."""
    return not Path(source).expanduser().exists() and bool(REMOTE.fullmatch(str(source)))


def fetch(source: str, cache: Path) -> Path:
    """The checkpoint of a W&B run (its best, else the last) or artifact, from the cache if there.

    Raises:
        ValueError: if there is none, or it cannot be fetched whole.
    """
    matched = REMOTE.fullmatch(source)
    try:
        api = _client(None).Api(timeout=INIT_TIMEOUT)
        found = _find(api, matched["run"], matched["alias"])
    except Exception as error:
        raise ValueError(
            f"checkpoint={source} is neither a file nor a W&B run or artifact that can be read "
            f"({_reason(error)}): check the name, the network and `wandb login`."
        ) from error
    if found is None:
        raise ValueError(
            f"checkpoint={source} is a W&B run without {RUN_FILE} or an artifact of checkpoints: "
            "name another, or an artifact entity/project/name:alias."
        )
    folder = cache / base64.b64decode(found.digest).hex()
    kept = folder / f"{source.replace('/', '-').replace(':', '-')}.pth"
    if kept.exists() and found.is_in(kept):
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
                reason = _reason(error)
        log.info("%s, try %d: %s", source, attempt + 1, reason)
    raise ValueError(
        f"checkpoint={source} could not be fetched whole from W&B in {TRIES} tries ({reason}): try "
        "again later."
    )


@dataclass(frozen=True)
class Stored:
    """A checkpoint as W&B has it."""

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
    try:
        return _in_artifact(api.artifact(f"{run.rpartition('/')[0]}/{logged.name}:best"))
    except Exception as error:
        log.info("%s has no artifact: %s", run, error)
    file = logged.file(RUN_FILE)
    if not file.size:
        return None

    def download(place: str) -> str:
        return file.download(place, replace=True).name

    return Stored(file.md5, file.md5, file.size, download)


def _in_artifact(artifact: Any) -> Stored | None:
    """The one checkpoint in an artifact; those of this project name its MD5 in their metadata."""
    names = [name for name in artifact.manifest.entries if name.endswith((".pth", ".pt"))]
    if len(names) != 1:
        return None
    entry = artifact.get_entry(names[0])

    def download(place: str) -> str:
        artifact.download(place, skip_cache=True, path_prefix=names[0])
        return str(Path(place, names[0]))

    return Stored(entry.digest, artifact.metadata.get("md5"), entry.size, download)


def sync(folder: Path, setup: dict, run_id: str) -> str:
    """Upload what a run recorded offline (or could not send), and see that it arrived; its name.

    folder: the run's. setup: wandb.setup of its settings.

    Raises:
        ValueError: if there is nothing to upload, or W&B has not got it afterwards.
    """
    recorded = [path for path in folder.glob(f"wandb/*run-*-{run_id}") if not path.is_symlink()]
    if not recorded:
        raise ValueError(
            f"{folder} has no W&B record: it was trained with wandb.setup.mode=disabled."
        )
    wandb = _client(None)
    said = ""
    for path in sorted(recorded, key=lambda path: path.name.split("run-")[1]):
        if not list(path.glob("*.synced")):
            found = subprocess.run(
                [sys.executable, "-m", "wandb", "sync", str(path)], capture_output=True, text=True
            )
            said = f"{found.stdout} {found.stderr}"
    try:  # `wandb sync` ends well whatever happened
        api = wandb.Api(timeout=INIT_TIMEOUT)
        entity = setup["entity"] or os.environ.get("WANDB_ENTITY") or api.default_entity
        name = f"{entity}/{setup['project']}/{run_id}"
        file = api.run(name).file(RUN_FILE)
        arrived = file.size and file.md5 == md5(folder / "checkpoints" / "last.pth")
        reason = f"it has no {RUN_FILE} like this run's last checkpoint"
    except Exception as error:
        arrived, reason = False, _reason(error)
    if not arrived:
        log.info("wandb sync: %s", said)
        raise ValueError(
            f"{folder} has not arrived at W&B ({reason}): check the network and `wandb login`, and "
            "try again."
        )
    return name


def _reason(error: Exception) -> str:
    """What an error says, on one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def md5(path: Path) -> str:
    """MD5 of a file in base64, as W&B gives it."""
    with open(path, "rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()


def _client(api_key: str | None) -> Any:
    """The W&B package, told to be quiet; importing it takes a second."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_X_DISABLE_VIEWER", "true")
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")  # a kill loses no more
    if api_key:
        os.environ["WANDB_API_KEY"] = api_key
    import wandb

    return wandb
