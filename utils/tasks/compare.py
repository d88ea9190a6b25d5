"""task=compare: the scores of several runs, made where they are missing, side by side."""

from collections.abc import Sequence
from pathlib import Path

from utils import checkpoint
from utils.evaluation.compared_runs import Run, cached_run, sources
from utils.evaluation.scoring import score
from utils.files import write_scores
from utils.processes.collectives import agree, from_main
from utils.processes.launch import Processes
from utils.report.figure_tables import shown_table
from utils.runs.access import check_own, results_folder
from utils.settings.command_line import Command
from utils.tasks.recorder import Recorder, models_of
from utils.tasks.trained import Trained
from utils.terminal import Terminal
from utils.tracking.wandb_evaluation import Evaluation


def compare(command: Command, processes: Processes) -> None:
    """Tables on the terminal; a page and a JSON file of every figure in a folder."""
    from utils.report.comparison import write_comparison  # loads matplotlib: 0.5 s

    recorder = Recorder(command, processes)
    task, runs_dir = command.task, command.value("runs_dir")
    terminal = Terminal(processes.is_main)
    output = results_folder(task.output, Path(runs_dir, "compare"))
    runs, named = [], from_main(sources(command.value("runs")))
    for source in named:
        run = cached_run(source, task, runs_dir, command.overrides)
        if any(agree(run is None)):
            terminal.line(f"Scoring {source}")
            run = _scored(source, command, processes)
        runs.append(run)
    if processes.is_main:
        page = write_comparison(runs, output.absolute(), terminal)
        recorder.record(output, terminal, lambda: _evaluation(command, named, runs, page))


def _evaluation(
    command: Command, named: Sequence[str], runs: Sequence[Run], page: Path
) -> Evaluation:
    """The comparison for W&B, of those of its runs that have a checkpoint."""
    from utils.evaluation.compare import compare as compare_runs
    from utils.report.comparison_tables import differences_table, layers_table, means_table

    comparison = compare_runs(runs)
    tables = {"means": means_table(comparison), "layers": layers_table(comparison)}
    for difference in comparison.differences:
        tables[f"{difference.letter}_less_A"] = differences_table(difference)
    files = {source: checkpoint.locate(source, command.value("runs_dir")) for source in named}
    return Evaluation(
        job_type="compare",
        name=f"compare of {len(runs)} runs",
        config={"task": command.task.model_dump(by_alias=True), "runs": list(named)},
        models=models_of({source: file for source, file in files.items() if file.is_file()}),
        tables=[shown_table(name, table) for name, table in tables.items()],
        pictures=sorted(page.parent.glob("*.png")),
        page=page,
    )


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
        trained.digest,
        trained.job.terminal,
    )
    if processes.is_main:
        write_scores(folder, f"{split}_scores", found.record.to_json(), found.per_image)
    return Run(found.record, found.per_image)
