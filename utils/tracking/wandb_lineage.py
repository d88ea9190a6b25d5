"""Which artifacts of W&B the models of an evaluation are: its lineage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from utils.tracking.wandb_client import api, is_missing, md5
from utils.tracking.wandb_fetch import ALIASES, REMOTE_NAME, in_artifact, is_remote, run_artifact


class UsedModel(BaseModel, frozen=True):
    """A model that an evaluation is of, and where W&B may have the same file."""

    name: str  # as the command calls it
    md5: str  # of its file, as W&B writes it
    run: str | None = None  # [entity/]project/run_id whose checkpoint it may be
    artifact: str | None = None  # entity/project/name:alias


def used_model(source: str, file: Path, run: str | None) -> UsedModel:
    """The model of this name and file. run: whose folder the file lies in, if any."""
    artifact = None
    if is_remote(source):
        named = REMOTE_NAME.fullmatch(source)
        run, artifact = (None, source) if named["alias"] else (named["run"], None)
    return UsedModel(name=source, md5=md5(file), run=run, artifact=artifact)


def declare(run_path: str, models: Sequence[UsedModel]) -> list[str]:
    """Name the models as inputs of the run entity/project/run_id.

    Returns the names of those that W&B has not got.
    """
    server, unknown = api(), []
    run = server.run(run_path)
    for model in models:
        artifact = next((a for a in _candidates(server, model) if _holds(a, model)), None)
        if artifact is None:
            unknown.append(model.name)
        else:
            run.use_artifact(artifact)
    return unknown


def _candidates(server: Any, model: UsedModel) -> list[Any]:
    """The artifacts of its names that are there."""
    try:
        if model.artifact:
            return [server.artifact(model.artifact)]
        name = server.run(model.run).name if model.run else ""
    except Exception as error:
        if is_missing(error):
            return []
        raise
    found = [run_artifact(server, model.run, name, alias) for alias in ALIASES if model.run]
    return [artifact for artifact in found if artifact]


def _holds(artifact: Any, model: UsedModel) -> bool:
    remote = in_artifact(artifact)
    return remote is not None and model.md5 in (remote.md5, remote.digest)
