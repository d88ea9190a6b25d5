"""The end of a training run: its best model scored, shown, recorded and reported on."""

from collections.abc import Callable

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from utils.evaluation.compared_runs import read_run
from utils.evaluation.quality import QualityMetrics
from utils.evaluation.scoring import score, scored_before
from utils.files import file_digest
from utils.processes.job import Job
from utils.report.figure_tables import tables_in, write_thumbnails
from utils.report.tables import show_score
from utils.runs.folder import RunFolder
from utils.settings.schema import Settings
from utils.tracking.tracker import Tracker


def conclude(
    best: LadderVAE,
    settings: Settings,
    test: EvaluationBatches,
    folder: RunFolder,
    tracker: Tracker,
    job: Job,
    quality: QualityMetrics | None,
    draw_figures: Callable[[LadderVAE, int, int], None],
    now: tuple[int, int],
) -> None:
    """Score the best model on the test set; from then on the run counts as finished.

    A run that was stopped between its scores and the end has them already. draw_figures(model,
    epoch, step): a run's pictures. now: epoch and step at which training ended.

    Collective: call it on every process.
    """
    digest = file_digest(folder.best)
    found = None
    if folder.cut_short:
        earlier = read_run(folder.results)
        found = scored_before(best, settings, test, digest, earlier, job.terminal)
    if not found:
        found = score(best, settings, test, "test", folder.best, digest, job.terminal, quality)
    try:
        folder.finish(found.record.to_json(), found.per_image)
    finally:  # on a full disk too
        show_score(job.terminal, found.record, found.metrics)
    tracker.summary(found.record.tracker_values())
    draw_figures(best, *now)
    if settings.task.report:
        from utils.report.collapse_report import write_report  # loads matplotlib: 0.5 s

        pictures = write_report(best, found, settings, test, folder.path / "report", job)
        tracker.pictures(pictures, *now)
        tracker.page(folder.path / "report" / "report.html", *now)
    if job.is_main:
        write_thumbnails(test, found.record.images_digest, folder.path)
    tracker.tables(lambda: tables_in(folder.path), *now)
    folder.conclude()
    job.terminal.line(f"Checkpoints, metrics, pictures and the log are in {folder.path}")
