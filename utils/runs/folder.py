"""A run's folder: named after its settings, locked by one process, resumed by the same command.

<name>-seed<seed>-<digest>/
    config.yaml  run.json  run.log  metrics.jsonl  results.json (when finished)
    checkpoints/last.pth  best.pth  manifest.json; their predecessors: last.previous.pth, …
    figures/*.png     wandb/
"""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import yaml

from utils.errors import ConfigError
from utils.files import (
    atomic_write,
    copy_file,
    remove_partials,
    write_json,
    write_scores,
)
from utils.processes.collectives import main_first
from utils.processes.launch import Processes
from utils.runs import checkpoints
from utils.runs.access import check_own, locked, log_to_file
from utils.runs.background import Saver
from utils.runs.stored import folders_with, wandb_id_in
from utils.settings.extension import before_extension
from utils.settings.identity import run_name, without_secrets
from utils.settings.schema import Settings
from utils.tracking.sinks import METRICS
from utils.tracking.tracker import Tracker
from utils.tracking.wandb_fetch import FetchedRun

log = logging.getLogger("ladder_vae")

OPTIMISATION = ("optimizer", "scheduler", "scaler", "objective")  # two thirds of a checkpoint
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
        self._concluding = self.path / ".concluding"  # there from the scores to the end
        shorter = before_extension(settings)
        self.former = shorter and self.path.with_name(run_name(shorter))
        self._opened: os.stat_result | None = None

    @property
    def results(self) -> Path:
        """The finished run's scores; there is no such file before."""
        return self.path / f"{RESULTS}.json"

    @property
    def cut_short(self) -> bool:
        """Whether the run was stopped between its scores and the end, and can go on."""
        return all(path.exists() for path in (self._concluding, self.results, self.last))

    @contextmanager
    def opened(self, start_over: bool, fetched: FetchedRun | None = None) -> Iterator[None]:
        """Create the folder, or reopen it; while it is open, the log is written to it.

        start_over: give a finished run another name and begin with an empty folder. fetched:
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
        check_own(self.path)
        if start_over:
            self._set_aside()
        if self.former and not fetched:
            self._take_over(self.former)
        self._make_folders()
        locks.enter_context(locked(self.path))
        remove_partials(self.checkpoints)
        log_to_file(self.path / "run.log")
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        atomic_write(self.path / "config.yaml", lambda file: file.write(text.encode()))
        if fetched:
            self._receive(fetched)
        elif wandb_id_in(self.path) is None or "WANDB_SWEEP_ID" in os.environ:
            # The agent of a W&B sweep chooses the id; a checkpoint has it where run.json was lost.
            saved, _ = checkpoints.newest(self.last)
            wandb_id = self._id_of_environment() or saved.get("wandb_id")
            write_json(self.record, {"wandb_id": wandb_id or secrets.token_hex(4)})

    def _take_over(self, former: Path) -> None:
        """Make the folder of the shorter run this run's, unless that was done before.

        Its scores and its best checkpoint keep other names in it.

        Raises:
            ConfigError: if it is not there, or has not come to its end.
        """
        if self.path.exists():
            return
        epochs = self.config["train"]["extended_from"][-1]
        names = {suffix: f"{RESULTS}_of_{epochs}_epochs{suffix}" for suffix in (".npz", ".json")}
        if not any((former / name).exists() for name in (f"{RESULTS}.json", names[".json"])):
            raise ConfigError(
                f"{former} is not a finished run of {epochs} epochs, which could be trained "
                "longer: finish it first, by its own command or train.resume_id=… alone."
            )
        check_own(former)
        with locked(former):
            best = former / "checkpoints" / "best.pth"
            if best.exists():
                copy_file(best, best.with_name(f"best_of_{epochs}_epochs.pth"))
            for suffix, name in names.items():  # the .json last: it tells that the run is finished
                if (scores := former / f"{RESULTS}{suffix}").exists():
                    scores.replace(former / name)
            former.rename(self.path)

    def _make_folders(self) -> None:
        """Create what is missing.

        Raises:
            ConfigError: if runs_dir doesn't allow it.
        """
        try:
            for folder in (self.figures, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"runs_dir={self.path.parent} cannot hold the run's folder {self.name} "
                f"({error.strerror}): allow or remove what is in the way, or set another "
                "runs_dir=…."
            ) from error
        self._opened = self.path.stat()

    def _id_of_environment(self) -> str | None:
        """The W&B id that WANDB_RUN_ID gives this run.

        Raises:
            ConfigError: if another run in runs_dir has it: W&B would mix the two.
        """
        wandb_id = os.environ.get("WANDB_RUN_ID")
        for other in folders_with(self.path.parent, wandb_id) if wandb_id else ():
            if other.name != self.name and not other.name.startswith(f"{self.name}.old"):
                raise ConfigError(
                    f"WANDB_RUN_ID={wandb_id} in the environment is the id of another run already, "
                    f"{other}: unset it, and each run gets an id of its own."
                )
        return wandb_id

    def _check_there(self) -> None:
        """Raise OSError unless the folder is still the one that was opened, and locked."""
        try:
            if self._opened is None or os.path.samestat(self._opened, self.path.stat()):
                return
        except FileNotFoundError:
            pass
        raise OSError(f"{self.path} was removed or renamed while this run was writing to it")

    def _receive(self, fetched: FetchedRun) -> None:
        """Fill the new folder with a run from W&B; run.json is written last."""
        if self.record.exists():
            raise ConfigError(
                f"train.resume_id={fetched.run_id} has the settings of {self.path}, which is "
                f"another run ({wandb_id_in(self.path)}): rename that folder, or set another "
                "runs_dir=…."
            )
        files = {self.path / METRICS: fetched.metrics, self.best: fetched.best}
        for path, source in {**files, self.last: fetched.last}.items():
            if source:
                copy_file(source, path)
        write_json(self.record, {"wandb_id": fetched.run_id})

    def _set_aside(self) -> None:
        """Give the finished run another name, unless another process has just done so.

        Raises:
            ConfigError: if a process is at work in it, or it is a shorter run trained longer, which
                cannot begin anew.
        """
        if self.former:
            epochs = self.config["train"]["extended_from"][-1]
            raise ConfigError(
                f"task.force=true would begin {self.path} anew, which went on from {epochs} "
                "epochs: leave it out, or train so many epochs from the start by train.max_epochs, "
                "without train.resume_id."
            )
        if not self.results.exists():
            return
        with locked(self.path):
            if not self.results.exists():
                return
            number = 1
            while os.path.lexists(aside := self.path.with_name(f"{self.name}.old{number}")):
                number += 1
            self.path.rename(aside)

    def save(self, name: str, state: dict) -> Path:
        """Write a checkpoint on the main process; returns its path."""
        path = self.checkpoints / f"{name}.pth"
        if self.processes.is_main:
            self._check_there()
            checkpoints.save(path, self.config, {**state, "wandb_id": self.wandb_id})
        return path

    def saver(self, tracker: Tracker, **constant: object) -> Saver | None:
        """What writes checkpoints, with these constants in each; None but on the main process."""
        if not self.processes.is_main:
            return None

        def write(name: str, state: dict) -> None:
            if name == "best":  # no run goes on from it
                state = {key: value for key, value in state.items() if key not in OPTIMISATION}
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
            self._check_there()
            atomic_write(self._concluding, lambda file: None)
            write_scores(self.path, RESULTS, record, per_image)

    def conclude(self) -> None:
        """Nothing is left to do."""
        if self.processes.is_main:
            self._concluding.unlink(missing_ok=True)

    @property
    def wandb_id(self) -> str:
        """The run's id at W&B, which never changes.

        Raises:
            ConfigError: if run.json was lost or damaged while the run was open.
        """
        found = wandb_id_in(self.path)
        if found is None:
            raise ConfigError(f"{self.record} was removed or damaged: repeat the command.")
        return found
