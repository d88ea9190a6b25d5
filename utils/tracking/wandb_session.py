"""A run of the W&B client: its mode, its start."""

import os
from pathlib import Path
from typing import Any

from utils.settings.schema.wandb import Wandb
from utils.tracking.wandb_client import INIT_TIMEOUT, client
from utils.version import code_version

FINISH_TIMEOUT = 20  # seconds for the client to send everything but checkpoints when a run ends
USER_DATA_DIR = os.environ.get("WANDB_DATA_DIR")


def log_in(settings: Wandb, mode: str) -> str:
    """Log in where needed; `online` or `offline`.

    Raises:
        ValueError: if there is no key and the mode is `online`.
    """
    if mode != "offline" and not client(settings.api_key).login(prompt=False):
        if mode == "online":
            raise ValueError("no key: `wandb login`, WANDB_API_KEY or wandb.api_key=…")
        return "offline"
    return "online" if mode == "auto" else mode


def start(
    settings: Wandb, folder: Path, name: str, run_id: str, config: dict, job_type: str, mode: str
) -> Any:
    """The client's run, new or resumed. settings: the wandb group. folder: where its files go.

    config: without secrets. mode: `online` or `offline`.
    """
    if USER_DATA_DIR is None:  # artifacts wait beside the run, not in the home folder
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb" / "data")
    wandb = client(settings.api_key)
    wandb.teardown()  # after a run that could not start, the client would refuse another
    setup = settings.setup
    return wandb.init(
        entity=setup.entity,
        project=setup.project,
        group=settings.group or config.get("name"),
        job_type=job_type,
        tags=settings.tags,
        notes=settings.notes,
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
