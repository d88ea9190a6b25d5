"""A run's folder: named after its settings, held by one process, continued by the same command.

<name>-seed<seed>-<digest>/
    config.yaml  run.json  run.log  metrics.jsonl  results.json (when finished)
    checkpoints/last.pth  best.pth  manifest.json, and the ones before: last.previous.pth, …
    figures/*.png     wandb/
"""

import fcntl
import glob
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

import numpy as np
import yaml

from utils.errors import ConfigError
from utils.files import atomic_write, write_json, write_scores
from utils.processes.collectives import main_first
from utils.processes.launch import Processes
from utils.runs import checkpoints
from utils.settings.identity import run_name, without_secrets
from utils.settings.trust import recorded
from utils.tracking.sinks import METRICS
from utils.tracking.wandb_fetch import FetchedRun

log = logging.getLogger("ladder_vae")

LARGEST_LOG = 20_000_000  # bytes, then it goes on in a new file and one old one is kept
RESULTS = "results"  # .json: the scores; .npz: each image's


class RunFolder:
    """The folder of the run that these settings describe; nothing is made before `open`."""

    def __init__(self, settings: dict, processes: Processes):
        self.processes = processes
        self.name = run_name(settings)
        self.path = Path(settings["runs_dir"], self.name).absolute()
        self.config = without_secrets(settings)
        self.figures, self.checkpoints = self.path / "figures", self.path / "checkpoints"
        self.last, self.best = self.checkpoints / "last.pth", self.checkpoints / "best.pth"
        self.record = self.path / "run.json"

    def results(self) -> dict | None:
        """What the finished run found; None where it is not finished."""
        path = self.path / f"{RESULTS}.json"
        return json.loads(path.read_text()) if path.exists() else None

    @contextmanager
    def opened(self, anew: bool, fetched: FetchedRun | None = None) -> Iterator[None]:
        """Make the folder, or take it up again; while it is open, the log goes to it.

        anew: keep what is there under another name and start with an empty folder. fetched: the
        run as W&B has it, where the folder is to go on from that. Only the main process writes; the
        others wait until the folder is there.

        Raises:
            ConfigError: if another process is at work in it, or it is of another run than fetched.
        """
        logging.captureWarnings(True)  # into the log; unseen on the other processes
        lock = self._open(anew, fetched) if self.processes.is_main else None
        if not lock:  # else logging prints what nobody has asked for
            logging.getLogger().addHandler(logging.NullHandler())
        main_first(self.processes, lambda: None)
        try:
            yield
        except BaseException:
            log.exception("The run ended early")
            raise
        finally:
            if lock:
                lock.close()

    def _open(self, anew: bool, fetched: FetchedRun | None) -> TextIO:
        if anew:
            self._set_aside()
        for folder in (self.figures, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        lock = locked(self.path)
        log_to(self.path / "run.log")
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        atomic_write(self.path / "config.yaml", lambda file: file.write(text.encode()))
        if fetched:
            self._receive(fetched)
        elif not self.record.exists() or "WANDB_SWEEP_ID" in os.environ:  # whose agent names runs
            saved = checkpoints.newest(self.last)  # where run.json alone was lost
            wandb_id = os.environ.get("WANDB_RUN_ID") or (saved and saved[0].get("wandb_id"))
            write_json(self.record, {"wandb_id": wandb_id or secrets.token_hex(4)})
        return lock

    def _receive(self, fetched: FetchedRun) -> None:
        """Become a run of W&B's; its id is written last."""
        if self.record.exists():
            raise ConfigError(
                f"train.resume_id={fetched.run_id} has the settings of {self.path}, which is "
                f"another run ({self.wandb_id}): rename that folder, or set another runs_dir=…."
            )
        parts = {self.path / METRICS: fetched.metrics, self.best: fetched.best}
        for path, source in {**parts, self.last: fetched.last}.items():
            if source:
                shutil.copyfile(source, path)
        write_json(self.record, {"wandb_id": fetched.run_id})

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.name}.old{number}")).exists():
            number += 1
        self.path.rename(aside)

    def save(self, name: str, state: dict) -> Path:
        """A checkpoint, by the main process; its path."""
        path = self.checkpoints / f"{name}.pth"
        if self.processes.is_main:
            checkpoints.save(path, self.config, {**state, "wandb_id": self.wandb_id})
        return path

    def check_images(self, trained_on: str | None, now: str) -> None:
        """A run goes on with the images that it began with; None: an earlier version's.

        Raises:
            ConfigError: if those at hand are others.
        """
        if trained_on not in (None, now):
            name = self.config["dataset"]["name"]
            raise ConfigError(
                f"{self.path} was trained on {trained_on.partition('-')[0]} images of {name}, and "
                f"those at hand ({now.partition('-')[0]}) are not the same: bring the former back, "
                "or train on the latter under another name=…."
            )

    def finish(self, record: dict, per_image: dict[str, np.ndarray]) -> None:
        """Write the results, the record last: from then on the run counts as finished."""
        if self.processes.is_main:
            write_scores(self.path, RESULTS, record, per_image)

    @property
    def wandb_id(self) -> str:
        """The W&B id that this folder keeps for life."""
        return json.loads(self.record.read_text())["wandb_id"]


def locked(folder: Path) -> TextIO:
    """A run's folder for this process alone, until the file is closed.

    Raises:
        ConfigError: if another process is at work in it.
    """
    lock = open(folder / ".lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ConfigError(
            f"{folder} is being trained by another process: wait for it, or change a "
            "setting (train.seed=…) for a run of its own."
        ) from error
    return lock


def matching(name: str) -> list[str]:
    """The paths that a name means: itself, or those that fit it where it is a pattern."""
    return sorted(glob.glob(name)) if glob.has_magic(name) else [name]


def recorded_run(folder: Path) -> tuple[Path, dict, str]:
    """A run's folder (absolute), its settings and its W&B id.

    Raises:
        ConfigError: if it is no run's.
    """
    record = folder / "run.json"
    if not record.exists():
        raise ConfigError(f"run={folder} is not the folder of a run: name one in runs_dir.")
    return folder.absolute(), _settings_in(folder), json.loads(record.read_text())["wandb_id"]


def recorded_settings(runs_dir: str, wandb_id: str) -> dict | None:
    """The settings of the run in runs_dir that has this W&B id; None where none has."""
    for path in sorted(Path(runs_dir).glob("*/run.json")):
        if json.loads(path.read_text())["wandb_id"] == wandb_id:
            return _settings_in(path.parent)
    return None


def _settings_in(folder: Path) -> dict:
    """What config.yaml of a run's folder says."""
    path = folder / "config.yaml"
    return recorded(yaml.safe_load(path.read_text()), str(path))


def log_to(path: Path) -> None:
    """Send the log, warnings included, to this file and nowhere else."""
    handler = RotatingFileHandler(path, maxBytes=LARGEST_LOG, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    logging.getLogger("ladder_vae").setLevel(logging.INFO)
