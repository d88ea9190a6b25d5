"""task=test and task=report: a trained model's scores, and what each of its layers carries."""

from pathlib import Path

from datasets.loaders import EvaluationBatches
from utils.evaluation.quality import prepare_alike
from utils.evaluation.scoring import Score, score
from utils.files import write_scores
from utils.processes.launch import Processes
from utils.report.tables import show_score
from utils.settings.command_line import Command
from utils.tasks.recorder import Recorder, score_evaluation
from utils.tasks.trained import Trained


def test(command: Command, processes: Processes) -> None:
    """Scores on the terminal, and as `<split>_scores` in a folder."""
    recorder = Recorder(command, processes)
    trained = Trained.named(command, processes)
    found, batches = score_of(trained)
    source = command.value("checkpoint")
    recorder.record(
        trained.output,
        trained.job.terminal,
        lambda: score_evaluation(trained, source, found, batches),
    )


def report(command: Command, processes: Processes) -> None:
    """The scores, and the collapse report in its own folder beside them: each split has one."""
    recorder = Recorder(command, processes)
    trained = Trained.named(command, processes)
    found, batches, pictures = report_on(trained)
    source = command.value("checkpoint")
    page = report_folder(trained.output, trained.settings.task.split) / "report.html"
    recorder.record(
        trained.output,
        trained.job.terminal,
        lambda: score_evaluation(trained, source, found, batches, pictures, page),
    )


def report_on(trained: Trained) -> tuple[Score, EvaluationBatches, list[Path]]:
    """`report` of a model that is loaded; its PNG files last."""
    from utils.report.collapse_report import write_report  # matplotlib takes a second

    found, batches = score_of(trained)
    folder = report_folder(trained.output, trained.settings.task.split)
    pictures = write_report(trained.model, found, trained.settings, batches, folder, trained.job)
    return found, batches, pictures


def report_folder(output: Path, split: str) -> Path:
    """Where a split's report is, beside its scores."""
    return output / ("report" if split == "test" else f"report_{split}")


def score_of(trained: Trained) -> tuple[Score, EvaluationBatches]:
    """Scored, shown and written down."""
    settings, job = trained.settings, trained.job
    batches = trained.batches()
    measures = prepare_alike(settings.train, job)
    found = score(
        trained.model,
        settings,
        batches,
        settings.task.split,
        trained.file,
        trained.digest,
        job.terminal,
        measures,
    )
    path = trained.output / f"{settings.task.split}_scores.json"
    try:
        if job.is_main:
            write_scores(path.parent, path.stem, found.record.to_json(), found.per_image)
    finally:  # on a full disk too
        show_score(job.terminal, found.record, found.metrics)
    job.terminal.line(f"Also in {path}")
    return found, batches
