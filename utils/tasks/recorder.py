"""Evaluations as W&B runs of their own, where wandb.record asks for them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from datasets.loaders import EvaluationBatches
from utils.errors import ConfigError
from utils.evaluation.scoring import Score
from utils.processes.launch import Processes
from utils.report.figure_tables import report_of, score_tables, thumbnails_of
from utils.runs.stored import read_run
from utils.settings.command_line import Command
from utils.settings.identity import without_secrets
from utils.tasks.trained import Trained
from utils.terminal import Terminal, one_line
from utils.tracking.wandb_evaluation import Evaluation, record
from utils.tracking.wandb_lineage import UsedModel, used_model

log = logging.getLogger("ladder_vae")
JOB_TYPES = {"test": "eval"}  # the others are called as their tasks are


class Recorder:
    """Records what a command evaluates, if it is to; on the main process.

    Raises:
        ConfigError: before any work, if a key of wandb is wrong.
    """

    def __init__(self, command: Command, processes: Processes):
        settings = command.wandb()
        self.settings = settings if settings.record and processes.is_main else None

    def record(self, output: Path, terminal: Terminal, make: Callable[[], Evaluation]) -> None:
        """Record what `make` makes, or leave it in the output folder; trouble costs a line."""
        if self.settings is None:
            return
        if self.settings.setup.mode == "disabled":
            terminal.line("wandb.record=true records nothing with wandb.setup.mode=disabled.")
            return
        try:
            record(make(), self.settings, output, terminal.line)
        except Exception as error:
            log.info("W&B", exc_info=True)
            terminal.line(f"The evaluation is not recorded for W&B: {one_line(error)}")


def score_evaluation(
    trained: Trained,
    source: str,
    score: Score,
    batches: EvaluationBatches,
    pictures: Sequence[Path] = (),
    page: Path | None = None,
) -> Evaluation:
    """A score of the model that `source` names; page: the report's, where there is one."""
    content, task = score.record, trained.settings.task
    if page:
        content = report_of(content, page.with_name("report.json"))
    return Evaluation(
        job_type=JOB_TYPES.get(task.name, task.name),
        name=f"{task.name} ({content.split}) of {trained.output.name}",
        config={**without_secrets(trained.settings), "checkpoint": source},
        models=models_of(trained.named_file(source)),
        figures=score.record.tracker_values(),
        tables=score_tables(
            content, score.per_image, thumbnails_of(batches, content.images_digest)
        ),
        pictures=pictures,
        page=page,
    )


def models_of(files: Mapping[str, Path]) -> list[UsedModel]:
    """The models of these names and files."""
    return [used_model(source, file, _run_of(file)) for source, file in files.items()]


def _run_of(file: Path) -> str | None:
    """[entity/]project/run_id of the run in whose folder a checkpoint lies; None if in none."""
    try:
        _, settings, wandb_id = read_run(file.parent.parent)
    except ConfigError:
        return None
    setup = settings["wandb"]["setup"]
    return "/".join(filter(None, (setup["entity"], setup["project"], wandb_id)))
