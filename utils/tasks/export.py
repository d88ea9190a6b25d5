"""task=export: a model as a folder to share, which checkpoint=DIR loads."""

import copy
import os
import shutil
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from utils.checkpoint import output_folder
from utils.errors import ConfigError
from utils.evaluation.record import ScoreRecord
from utils.files import PARTIAL, explained, file_digest, write_json
from utils.processes.collectives import agree
from utils.processes.launch import Processes
from utils.report.content import ReportContent
from utils.report.figure_tables import has_report
from utils.report.model_card import model_card
from utils.runs import exported
from utils.runs.access import check_no_links, check_own
from utils.runs.folder import RESULTS
from utils.settings.command_line import Command
from utils.settings.identity import without_secrets
from utils.settings.schema import Settings
from utils.tasks.test import report_folder, report_on, score_of
from utils.tasks.trained import Trained

PLACES = {  # of the machine that trained, which are nobody else's
    "dataset": {"root": "data", "cache": "data/cache"},
    "train": {"resume_id": None, "init_from": None, "fid_weights": None, "device": "auto"},
    "wandb": {"notes": None, "tags": []},
    "task": {"output": None},
    "ood": {"root": None},
}


def export(command: Command, processes: Processes) -> None:
    """model.safetensors, config.json, results.json, report/ and README.md in a new folder.

    Scores and report are those that the run ended with; of any other checkpoint or split they are
    made first.

    Raises:
        ConfigError: if the folder is not named, or there already.
    """
    target = Path(command.task.output or "").absolute()
    if command.task.output is None or os.path.lexists(target):
        trouble = "is not set" if command.task.output is None else "is there already"
        raise ConfigError(f"task.output={command.task.output} {trouble}: name a new folder.")
    trained = Trained.named(command, processes)
    folder = output_folder(command.value("checkpoint"), command.value("runs_dir"))
    trained = replace(trained, output=folder)
    scores = _own_scores(trained)
    if any(agree(scores is None)):
        check_own(folder, "score it by task=report and task.output=…, or export a copy")
        (report_on if trained.settings.task.report else score_of)(trained)
        scores = folder / f"{trained.settings.task.split}_scores.json"
    if trained.job.is_main:
        partial = target.with_name(f"{target.name}.{token_hex(4)}{PARTIAL}")
        try:
            _write(trained, scores, partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    trained.job.terminal.line(f"{target} is the exported model: checkpoint={target} loads it")


def _own_scores(trained: Trained) -> Path | None:
    """The file with the scores that the run ended with, where they are what is asked for.

    They are of the whole test split and this checkpoint; the report is beside them if it is wanted.
    """
    task, path = trained.settings.task, trained.output / f"{RESULTS}.json"
    whole_test = task.split == "test" and task.num_images is None
    if not whole_test or not (path.exists() and path.with_suffix(".npz").exists()):
        return None
    record = ScoreRecord.read(path)
    if task.report and not has_report(record, report_folder(trained.output, "test")):
        return None
    asked = (record.checkpoint_digest, record.split) == (trained.digest, "test")
    return path if asked else None


def _write(trained: Trained, scores: Path, folder: Path) -> None:
    """The folder's files; the model card last."""
    record, settings = ScoreRecord.read(scores), public_settings(trained.settings)
    with explained(folder):
        folder.mkdir(parents=True)
        exported.write_model(folder, trained.model.state_dict(), settings, trained.progress)
        digest = file_digest(folder / exported.WEIGHTS)
        public = _public(record, settings, digest)
        write_json(folder / exported.RESULTS, public.to_json())
        report = report_folder(scores.parent, record.split)
        reported = trained.settings.task.report and report.is_dir()
        check_no_links(scores.parent)
        shutil.copy(scores.with_suffix(".npz"), folder / f"{RESULTS}.npz")
        if reported:
            shutil.copytree(report, folder / "report")
            content = ReportContent.read(report / "report.json")
            public_content = _public(content, settings, digest)
            write_json(folder / "report" / "report.json", public_content.to_json())
        license = trained.settings.task.license
        card = model_card(public, trained.progress.get("epoch"), license, reported)
        (folder / exported.CARD).write_text(card, encoding="utf-8")


def _public(record: ScoreRecord, settings: dict, digest: str) -> ScoreRecord:
    """A record of the exported weights' file, without what belongs to the machine that made it.

    Its texts are those of the settings, which are checked.
    """
    checkpoint = {"checkpoint": exported.WEIGHTS, "checkpoint_digest": digest}
    names = {"name": settings["name"], "dataset": settings["dataset"]["name"]}
    return record.model_copy(update={"config": settings, **checkpoint, **names})


def public_settings(settings: Settings) -> dict:
    """The settings without secrets, and without what belongs to the machine that trained."""
    plain = copy.deepcopy(without_secrets(settings))
    for group, values in PLACES.items():
        plain[group] |= {key: value for key, value in values.items() if key in plain[group]}
    plain["wandb"]["setup"]["entity"] = None
    plain["dataset"] = _without_folders(plain["dataset"])  # those of a data set of one's own
    return {**plain, "checkpoint": None, "run": None, "runs": [], "runs_dir": "runs"}


def _without_folders(value: Any) -> Any:
    """Settings in which what is a path from this machine's root is its last part."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value
