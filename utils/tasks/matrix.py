"""task=matrix: remedies × seeds, trained where they are missing, and a page that compares them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import ConfigError
from utils.processes.launch import Processes
from utils.report.figure_tables import shown_table
from utils.runs.access import results_folder
from utils.settings.command_line import Command
from utils.settings.identity import without_secrets
from utils.tasks.recorder import Recorder, models_of
from utils.terminal import Terminal
from utils.tracking.wandb_evaluation import Evaluation

if TYPE_CHECKING:
    from utils.report.matrix import Matrix


def matrix(command: Command, processes: Processes) -> None:
    """Make every cell, then write the page of all that are there.

    Raises:
        ConfigError: if cells failed (the page names them), or none of the first arm is finished.
        Interrupted: when asked to stop; the same command goes on.
    """
    from utils.report.matrix import build_matrix  # loads matplotlib and scipy: a second
    from utils.report.matrix_page import write_matrix
    from utils.tasks.cell_runner import CellRunner
    from utils.tasks.cells import launcher_overrides, plan

    if processes.world > 1:
        raise ConfigError(
            f"task=matrix starts its runs itself: start it once, without {processes.launcher}, and "
            "use task.jobs=… or hydra/launcher=…."
        )
    recorder = Recorder(command, processes)
    task, terminal = command.task, Terminal()
    cells = plan(command)
    name = cells[0].folder.name.rpartition("-seed")[0]
    folder = results_folder(task.output, Path(command.value("runs_dir"), f"matrix-{name}"))
    folder = folder.absolute()
    failed: dict[str, str] = {}
    if task.jobs:
        terminal.line(f"{len(cells)} runs, {task.jobs} at a time; their logs: {folder / 'logs'}")
        runner = CellRunner(folder / "logs", task.jobs, launcher_overrides(), terminal)
        failed = runner.run(cells, command.value("train.grace_seconds"))
    runs = [run for run in (cell.result() for cell in cells) if run]
    there = {(run.arm, run.seed) for run in runs}
    missing = {
        cell.name: failed.get(cell.name, "not made yet")
        for cell in cells
        if (cell.arm.label, cell.seed) not in there
    }
    if failed and not any(run.arm == cells[0].arm.label for run in runs):
        first, reason = next(iter(failed.items()))
        raise ConfigError(
            f"{len(failed)} of {len(cells)} runs failed, all of {cells[0].arm.label} among them, "
            f"from which the others would differ: {first} ({reason})."
        )
    settings = {cell.arm.label: cell.arm.settings for cell in cells}
    built = build_matrix(runs, settings, missing)
    page = write_matrix(built, folder, terminal)
    made = [cell.folder for cell in cells if (cell.arm.label, cell.seed) in there]
    recorder.record(folder, terminal, lambda: _evaluation(command, built, made, page))
    if failed:
        names = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
        raise ConfigError(
            f"{len(failed)} of {len(cells)} runs failed: {names}. {page} has the others; the same "
            "command tries these again."
        )


def _evaluation(
    command: Command, matrix: "Matrix", folders: Sequence[Path], page: Path
) -> Evaluation:
    """The matrix for W&B, of the runs in these folders."""
    from utils.report.matrix_tables import runs_table, verdict_table

    return Evaluation(
        job_type="matrix",
        name=f"matrix of {matrix.name}",
        config=without_secrets(command.settings),
        models=models_of({str(folder): folder / "checkpoints" / "best.pth" for folder in folders}),
        tables=[
            shown_table("verdicts", verdict_table(matrix)),
            shown_table("runs", runs_table(matrix)),
        ],
        pictures=sorted(page.parent.glob("*.png")),
        page=page,
    )
