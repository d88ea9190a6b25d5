"""Who may write into a run's folder: its owner, one process at a time, and through no link."""

import logging
import os
import tempfile
from contextlib import AbstractContextManager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from utils.errors import ConfigError
from utils.files import explained, no_follow
from utils.terminal import LogFormatter

MAX_LOG_BYTES = 20_000_000  # then a new file is begun; one old file is kept
INNER = (
    "checkpoints",
    "figures",
    "report",
    "report_train",
    "report_validation",
    "tensorboard",
    "wandb",
    "wandb/evaluations",
)  # folders in a run's


def check_own(folder: Path, remedy: str = "rename it, or set another runs_dir=…") -> None:
    """A folder, if it is there, is this user's own, and it and those in it are no links elsewhere.

    Raises:
        ConfigError: otherwise: nothing is written there.
    """
    inner = {folder / name for name in INNER}
    if folder.is_dir() and not folder.is_symlink():
        inner |= {path for path in folder.iterdir() if not path.is_file()}  # files are replaced
    for path in (folder, *sorted(inner)):
        if path.is_symlink():
            trouble = "is a symbolic link"
        elif path.exists() and not _is_own(path):
            trouble = "belongs to another user"
        else:
            continue
        raise ConfigError(f"{path} {trouble}, so nothing was written there: {remedy}.")


def check_no_links(folder: Path) -> None:
    """Nothing in a folder is a link out of it: of a stranger's run, that would be a file of ours.

    W&B's own links to its logs, which nothing uploads, are left alone.

    Raises:
        ConfigError: naming the first: nothing is shared.
    """
    own = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if "wandb" in path.relative_to(folder).parts[:1] and path.parent.name == "logs":
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(own):
            raise ConfigError(
                f"{path} is a symbolic link out of its folder, so nothing was shared: remove it."
            )


def results_folder(named: str | None, own: Path) -> Path:
    """Where a task's results go: the folder that task.output names, else the project's own.

    Raises:
        ConfigError: if the latter is another user's, or a link.
    """
    if named is None:
        check_own(own, "name a folder by task.output=…")
    return own if named is None else Path(named)


def _is_own(folder: Path) -> bool:
    owner = folder.stat().st_uid
    if not hasattr(os, "geteuid") or owner == os.geteuid():
        return True
    try:  # some network disks show all files as one user's, new ones too
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_uid == owner
    except OSError:
        return False


def locked(folder: Path) -> AbstractContextManager:
    """Lock a run's folder for this process; the returned context manager releases it.

    The system releases the lock of a process that dies.

    Raises:
        ConfigError: if another process holds it.
        OSError: one sentence, if the lock's file cannot be written.
    """
    from filelock import FileLock, Timeout  # not at every start

    lock = folder / ".lock"
    with explained(lock):
        try:
            return FileLock(lock).acquire(blocking=False)
        except Timeout as error:
            raise ConfigError(
                f"{folder} is being trained by another process: wait for it, or change a "
                "setting (train.seed=…) for a run of its own."
            ) from error


def is_locked(folder: Path) -> bool:
    """Whether another process holds a run's folder."""
    if not (folder / ".lock").exists():
        return False
    try:
        with locked(folder):
            return False
    except ConfigError:
        return True


class RunLog(RotatingFileHandler):
    """Follows no link; silent where it can't be written, since other files then say so."""

    def _open(self) -> TextIO:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=no_follow)

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the line out."""

    def close(self) -> None:
        """Close the file, whether or not its last lines fit on the disk."""
        with suppress(OSError):
            super().close()


def log_to_file(path: Path) -> None:
    """Write the log, warnings included, to this file only.

    Raises:
        OSError: one sentence, if it cannot be written.
    """
    with explained(path):
        handler = RunLog(path, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    logging.getLogger("ladder_vae").setLevel(logging.INFO)
