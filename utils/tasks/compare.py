"""task=compare: the scores of several runs, made where they are missing, side by side."""

from pathlib import Path

from utils import checkpoint
from utils.evaluation.compared_runs import Run, cached_run, sources
from utils.evaluation.scoring import score
from utils.files import write_scores
from utils.processes.collectives import agree, from_main
from utils.processes.launch import Processes
from utils.runs.access import check_own, results_folder
from utils.settings.command_line import Command
from utils.tasks.trained import Trained
from utils.terminal import Terminal


def compare(command: Command, processes: Processes) -> None:
    """Tables on the terminal; a page and a JSON file of every figure in a folder."""
    from utils.report.comparison import write_comparison  # loads matplotlib: 0.5 s

    task, runs_dir = command.task, command.value("runs_dir")
    terminal = Terminal(processes.is_main)
    output = results_folder(task.output, Path(runs_dir, "compare"))
    runs = []
    for source in from_main(sources(command.value("runs"))):
        run = cached_run(source, task, runs_dir, command.overrides)
        if any(agree(run is None)):
            terminal.line(f"Scoring {source}")
            run = _scored(source, command, processes)
        runs.append(run)
    if processes.is_main:
        write_comparison(runs, output.absolute(), terminal)


def _scored(source: str, command: Command, processes: Processes) -> Run:
    """A run scored now, and written down for the next time."""
    folder = checkpoint.output_folder(source, command.value("runs_dir"))
    check_own(folder, "score it by task=test and task.output=…, or compare a copy")
    trained, split = Trained.load(source, command, processes), command.task.split
    found = score(
        trained.model,
        trained.settings,
        trained.batches(),
        split,
        trained.file,
        trained.job.terminal,
    )
    if processes.is_main:
        write_scores(folder, f"{split}_scores", found.record.to_json(), found.per_image)
    return Run(found.record, found.per_image)
