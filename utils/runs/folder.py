"""A run's folder: named after its settings, locked by one process, resumed by the same command.

<name>-seed<seed>-<digest>/
    config.yaml  run.json  run.log  metrics.jsonl  results.json (when finished)
    checkpoints/last.pth  best.pth  manifest.json; their predecessors: last.previous.pth, …
    figures/*.png     wandb/
"""

import glob
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

import numpy as np
import yaml

from utils.errors import ConfigError
from utils.files import atomic_write, write_json, write_scores
from utils.processes.collectives import main_first
from utils.processes.launch import Processes
from utils.runs import checkpoints
from utils.runs.background import Saver
from utils.settings.identity import run_name, without_secrets
from utils.settings.schema import Settings
from utils.settings.trust import plain_data
from utils.terminal import LogFormatter, one_line
from utils.tracking.sinks import METRICS
from utils.tracking.tracker import Tracker
from utils.tracking.wandb_fetch import FetchedRun

log = logging.getLogger("ladder_vae")

MAX_LOG_BYTES = 20_000_000  # then a new file is begun; one old file is kept
RESULTS = "results"  # .json: the scores; .npz: the per-image values


class RunFolder:
    """The folder of the run that these settings describe; nothing is created before `opened`."""

    def __init__(self, settings: Settings, processes: Processes):
        self.processes = processes
        self.name = run_name(settings)
        self.path = Path(settings.runs_dir, self.name).absolute()
        self.config = without_secrets(settings)
        self.figures, self.checkpoints = self.path / "figures", self.path / "checkpoints"
        self.last, self.best = self.checkpoints / "last.pth", self.checkpoints / "best.pth"
        self.record = self.path / "run.json"

    @property
    def results(self) -> Path:
        """The finished run's scores; there is no such file before."""
        return self.path / f"{RESULTS}.json"

    @contextmanager
    def opened(self, start_over: bool, fetched: FetchedRun | None = None) -> Iterator[None]:
        """Create the folder, or reopen it; while it is open, the log is written to it.

        start_over: move existing contents to another name and begin with an empty folder. fetched:
        a run at W&B that the new folder is to continue. Only the main process writes; the others
        wait until the folder is there.

        Raises:
            ConfigError: if another process holds it, or it belongs to another run than fetched.
        """
        logging.captureWarnings(True)  # into the log, which only the main process has
        with ExitStack() as locks:
            if self.processes.is_main:
                self._open(start_over, fetched, locks)
            else:  # without any handler, logging would print warnings
                logging.getLogger().addHandler(logging.NullHandler())
            main_first(self.processes, lambda: None)
            try:
                yield
            except BaseException:
                log.exception("The run ended early")
                raise

    def _open(self, start_over: bool, fetched: FetchedRun | None, locks: ExitStack) -> None:
        if start_over:
            self._set_aside()
        for folder in (self.figures, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        locks.enter_context(locked(self.path))
        log_to_file(self.path / "run.log")
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        atomic_write(self.path / "config.yaml", lambda file: file.write(text.encode()))
        if fetched:
            self._receive(fetched)
        elif not self.record.exists() or "WANDB_SWEEP_ID" in os.environ:
            # The agent of a W&B sweep chooses the id; a checkpoint has it where run.json was lost.
            saved, _ = checkpoints.newest(self.last)
            wandb_id = os.environ.get("WANDB_RUN_ID") or saved.get("wandb_id")
            write_json(self.record, {"wandb_id": wandb_id or secrets.token_hex(4)})

    def _receive(self, fetched: FetchedRun) -> None:
        """Fill the new folder with a run from W&B; run.json is written last."""
        if self.record.exists():
            raise ConfigError(
                f"train.resume_id={fetched.run_id} has the settings of {self.path}, which is "
                f"another run ({self.wandb_id}): rename that folder, or set another runs_dir=…."
            )
        files = {self.path / METRICS: fetched.metrics, self.best: fetched.best}
        for path, source in {**files, self.last: fetched.last}.items():
            if source:
                shutil.copyfile(source, path)
        write_json(self.record, {"wandb_id": fetched.run_id})

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.name}.old{number}")).exists():
            number += 1
        self.path.rename(aside)

    def save(self, name: str, state: dict) -> Path:
        """Write a checkpoint on the main process; returns its path."""
        path = self.checkpoints / f"{name}.pth"
        if self.processes.is_main:
            checkpoints.save(path, self.config, {**state, "wandb_id": self.wandb_id})
        return path

    def saver(self, tracker: Tracker, **constant: object) -> Saver | None:
        """What writes checkpoints, with these constants in each; None but on the main process."""
        if not self.processes.is_main:
            return None

        def write(name: str, state: dict) -> None:
            path = self.save(name, {**state, **constant})
            if path in (self.best, self.last):
                tracker.checkpoint(name, path, checkpoints.metadata(state))

        return Saver(write)

    def check_images(self, trained_on: str | None, now: str) -> None:
        """Check the fingerprints of the images: a run must go on with those that it began with.

        trained_on: None for checkpoints of versions that recorded none.

        Raises:
            ConfigError: if the images are not the same.
        """
        if trained_on not in (None, now):
            name = self.config["dataset"]["name"]
            raise ConfigError(
                f"{self.path} was trained on {trained_on.partition('-')[0]} images of {name}, and "
                f"those at hand ({now.partition('-')[0]}) are not the same: bring the former back, "
                "or train on the latter under another name=…."
            )

    def finish(self, record: dict, per_image: dict[str, np.ndarray]) -> None:
        """Write the results, the scores last: from then on the run counts as finished."""
        if self.processes.is_main:
            write_scores(self.path, RESULTS, record, per_image)

    @property
    def wandb_id(self) -> str:
        """The run's id at W&B, which never changes."""
        return json.loads(self.record.read_text())["wandb_id"]


def locked(folder: Path) -> AbstractContextManager:
    """Lock a run's folder for this process; the returned context manager releases it.

    The system releases the lock of a process that dies.

    Raises:
        ConfigError: if another process holds it.
    """
    from filelock import FileLock, Timeout  # not at every start

    try:
        return FileLock(folder / ".lock").acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"{folder} is being trained by another process: wait for it, or change a "
            "setting (train.seed=…) for a run of its own."
        ) from error


def expand_pattern(name: str) -> list[str]:
    """The paths that match a glob pattern; any other name stands for itself."""
    return sorted(glob.glob(name)) if glob.has_magic(name) else [name]


def read_run(folder: Path) -> tuple[Path, dict, str]:
    """A run's folder (absolute), its settings and its W&B id.

    Raises:
        ConfigError: if it is not the folder of a run.
    """
    record = folder / "run.json"
    if not record.exists():
        raise ConfigError(f"run={folder} is not the folder of a run: name one in runs_dir.")
    return folder.absolute(), _settings_in(folder), json.loads(record.read_text())["wandb_id"]


def find_run_settings(runs_dir: str, wandb_id: str) -> dict | None:
    """The settings of the run in runs_dir that has this W&B id; None where none has."""
    for path in sorted(Path(runs_dir).glob("*/run.json")):
        if json.loads(path.read_text())["wandb_id"] == wandb_id:
            return _settings_in(path.parent)
    return None


def _settings_in(folder: Path) -> dict:
    """The settings in config.yaml of a run's folder."""
    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({one_line(error)}): get a good copy.") from error
    return plain_data(content, str(path))


def log_to_file(path: Path) -> None:
    """Write the log, warnings included, to this file only."""
    handler = RotatingFileHandler(path, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    logging.getLogger("ladder_vae").setLevel(logging.INFO)
