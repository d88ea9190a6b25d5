"""An evaluation as a W&B run of its own, which names the models that it is of as its inputs.

What W&B has not got yet waits in <output>/wandb/evaluations/<id>/: the client's offline record, and
evaluation.json with what has to be checked and declared once it has arrived.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from threading import Thread
from typing import Any

from pydantic import BaseModel, ValidationError

from utils.errors import ConfigError
from utils.files import read_json, write_json
from utils.settings.schema.wandb import Wandb
from utils.terminal import one_line
from utils.tracking.sinks import FigureTable
from utils.tracking.wandb_client import api, client, md5, wait_until_shown
from utils.tracking.wandb_code import log_code
from utils.tracking.wandb_lineage import UsedModel, declare
from utils.tracking.wandb_offline import sync_record
from utils.tracking.wandb_session import log_in, start
from utils.tracking.wandb_tables import as_row, digests, wait_for

log = logging.getLogger("ladder_vae")
FOLDER, STATE = Path("wandb", "evaluations"), "evaluation.json"
ARRIVAL_TIMEOUT = 30  # seconds for W&B to show all of it


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation shows at W&B; config is without secrets."""

    job_type: str
    name: str
    config: dict
    models: Sequence[UsedModel]
    figures: Mapping[str, float | str] = field(default_factory=dict)
    tables: Sequence[FigureTable] = ()
    pictures: Sequence[Path] = ()
    page: Path | None = None


class Waiting(BaseModel, frozen=True):
    """evaluation.json."""

    id: str
    name: str
    entity: str | None
    project: str
    figures: list[str]  # their names
    tables: dict[str, str]  # digests by name
    models: list[UsedModel]


def record(
    evaluation: Evaluation, settings: Wandb, output: Path, print_line: Callable[[str], None]
) -> None:
    """Record it in the mode of the settings; where W&B is away, offline in the output folder.

    Raises:
        Exception: if neither can be done.
    """
    waiting = Waiting(
        id=token_hex(4),
        name=evaluation.name,
        entity=settings.setup.entity,
        project=settings.setup.project,
        figures=list(evaluation.figures),
        tables=digests(evaluation.tables),
        models=list(evaluation.models),
    )
    folder = output.absolute() / FOLDER / waiting.id
    write_json(folder / STATE, waiting.model_dump())
    mode = settings.setup.mode
    try:
        if log_in(settings, mode) == "online":
            path = _send(evaluation, settings, folder, waiting.id, "online")
            print_line(_within(2 * ARRIVAL_TIMEOUT, lambda: _conclude(folder, waiting, path)))
            return
    except Exception as error:
        log.info("W&B, %s", evaluation.name, exc_info=True)  # evaluations have no log of their own
        print_line(f"W&B (mode {mode}) has not got the evaluation: {one_line(error)}")
    try:
        _send(evaluation, settings, folder, waiting.id, "offline")
    except Exception:
        shutil.rmtree(folder)  # there is nothing in it to upload
        raise
    print_line(f"Recorded for W&B offline; task=sync run={output} uploads it.")


def waiting_in(output: Path) -> list[Path]:
    """The folders of the evaluations that W&B has not got yet."""
    return sorted(path.parent for path in (output / FOLDER).glob(f"*/{STATE}"))


def upload(folder: Path, setup: Mapping[str, Any]) -> str:
    """Bring one of `waiting_in` to W&B; a sentence about it.

    setup: the entity and project in place of those that were set when it was recorded.

    Raises:
        ConfigError: if its record is damaged.
        Exception: if it has not arrived.
    """
    try:
        waiting = Waiting.model_validate(read_json(folder / STATE, "remove its folder"))
    except ValidationError as error:
        raise ConfigError(f"{folder / STATE} is damaged: remove its folder.") from error
    entity = setup.get("entity") or waiting.entity
    project = setup.get("project") or waiting.project
    records = folder / "wandb"  # where sending was cut off, there is only the one that was online
    for path in sorted(records.glob("offline-run-*")) or sorted(records.glob("run-*")):
        sync_record(path, entity, project)
    return _conclude(folder, waiting, f"{entity or api().default_entity}/{project}/{waiting.id}")


def _send(evaluation: Evaluation, settings: Wandb, folder: Path, run_id: str, mode: str) -> str:
    """One row with all there is to see, and the figures; entity/project/run_id."""
    wandb = client(settings.api_key)
    names = evaluation.name, run_id, evaluation.config, evaluation.job_type
    run = start(settings, folder, *names, mode)
    row = as_row(evaluation.tables)
    row |= {f"figures/{path.stem}": wandb.Image(str(path)) for path in evaluation.pictures}
    if evaluation.page:
        row["report"] = wandb.Html(str(evaluation.page), inject=False)
    if row:
        run.log(row, step=0, commit=True)
    run.summary.update(evaluation.figures)
    if settings.save_code:
        log_code(run)
    run.finish()
    return f"{run.entity}/{run.project}/{run_id}"


def _conclude(folder: Path, waiting: Waiting, path: str) -> str:
    """Check that it has arrived, and declare its models; then nothing of it waits any more."""
    wait_for(path, waiting.tables)
    _wait_for_rest(path, folder, [*waiting.tables, *waiting.figures])
    unknown = declare(path, waiting.models)
    shutil.rmtree(folder)
    said = f"{waiting.name} is at W&B as {path}"
    if unknown:
        names = ", ".join(unknown[:3]) + f" and {len(unknown) - 3} more" * (len(unknown) > 3)
        said += f", without its lineage: W&B has no such file as {names}"
    return said


def _wait_for_rest(path: str, folder: Path, figures: Sequence[str]) -> None:
    """Wait until the run has these figures, and every picture, page and table that was recorded.

    Raises:
        OSError: if it has not within ARRIVAL_TIMEOUT.
    """
    files = {
        str(file.relative_to(root)): md5(file)
        for root in folder.glob("wandb/*/files")
        for file in root.glob("media/**/*")
        if file.is_file()
    }

    def lacking() -> list[str]:
        run = api().run(path)
        there = {file.name: file.md5 for file in run.files()}
        missing = [name for name, digest in files.items() if there.get(name) != digest]
        return missing + [name for name in figures if run.summary.get(name) is None]

    wait_until_shown(lacking, ARRIVAL_TIMEOUT)


def _within(seconds: float, action: Callable[[], str]) -> str:
    """What an action returns; the client would go on asking a server that is away.

    Raises:
        TimeoutError: if it has not come to its end.
        Exception: of the action.
    """
    outcome: dict[str, Any] = {}

    def attempt() -> None:
        try:
            outcome["result"] = action()
        except Exception as error:
            outcome["error"] = error

    thread = Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if "error" in outcome:
        raise outcome["error"]
    if "result" not in outcome:
        raise TimeoutError(f"no answer in {seconds} s")
    return outcome["result"]
