"""The W&B client: the only module that imports and configures it."""

import base64
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

INIT_TIMEOUT = 20  # seconds for the W&B server to answer
TRIES = 3  # of a download or an upload
RUN_CHECKPOINT = "last_chpt.pth"  # a run's checkpoint file, as the published code names it


def client(api_key: str | None = None) -> Any:
    """The `wandb` package, configured to print nothing; importing it takes a second."""
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_X_DISABLE_VIEWER", "true")
    # Seconds between writes to its own record: what is lost when the process is killed.
    os.environ.setdefault("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "1")
    if api_key:
        os.environ["WANDB_API_KEY"] = api_key
    logging.raiseExceptions = False  # its log would fill the terminal when the disk is full
    import wandb

    return wandb


def api() -> Any:
    """W&B's public API, for what is stored there."""
    return client().Api(timeout=INIT_TIMEOUT)


def is_missing(error: Exception) -> bool:
    """Whether it says that W&B has no such thing; the client has no exception of its own for it."""
    return "not found" in str(error) or "Could not find" in str(error)


def find_artifact(server: Any, path: str) -> Any | None:
    """The artifact of that path; None where there is none. server: the public API."""
    try:
        return server.artifact(path)
    except Exception as error:
        if is_missing(error):
            return None
        raise


def wait_until_shown(lacking: Callable[[], Sequence[str]], timeout: float) -> None:
    """Wait until W&B lacks nothing of what it was sent. lacking: asks for the names.

    Raises:
        OSError: if it does after so many seconds.
    """
    deadline = time.monotonic() + timeout
    while names := lacking():
        if time.monotonic() > deadline:
            raise OSError(f"W&B does not show {names[0]} {timeout:.0f} s after it was sent")
        time.sleep(0.5)


def artifact_name(run_id: str, alias: str) -> str:
    """The artifact of a run's `best` or `last` checkpoint, whose versions are all of this run."""
    return re.sub(r"[^\w.-]", "-", f"{run_id}-{alias}", flags=re.ASCII)


def md5(path: Path) -> str:
    """The MD5 of a file in base64, W&B's format."""
    with open(path, "rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()
