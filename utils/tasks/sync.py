"""task=sync: what the folders of runs hold, brought to W&B."""

import logging
from functools import partial
from pathlib import Path

from utils.errors import ConfigError
from utils.evaluation.compared_runs import read_run as read_scores
from utils.evaluation.record import ScoreRecord
from utils.processes.launch import Processes
from utils.report.figure_tables import has_report, tables_in
from utils.runs import checkpoints
from utils.runs.access import check_no_links, check_own, locked, log_to_file
from utils.runs.folder import RESULTS
from utils.runs.stored import expand_pattern, read_run
from utils.settings.check import check
from utils.settings.command_line import Command
from utils.settings.identity import without_secrets
from utils.settings.recorded import recorded_settings
from utils.settings.schema import Settings
from utils.terminal import Terminal, one_line
from utils.tracking.sinks import METRICS, LocalSink
from utils.tracking.wandb_evaluation import upload, waiting_in
from utils.tracking.wandb_offline import upload_records
from utils.tracking.wandb_sink import WandbSink

log = logging.getLogger("ladder_vae")


def sync(command: Command, processes: Processes) -> None:
    """Every run that run=… names, brought up to date at W&B.

    Raises:
        ConfigError: if it names none.
    """
    terminal, pattern = Terminal(processes.is_main), command.value("run")
    found = expand_pattern(pattern) if pattern else []
    if not found:
        raise ConfigError(
            f"run={pattern} names no run: task=sync needs run=… (its folder, or a pattern)."
        )
    failed = []
    for source in found:
        folder = Path(source).expanduser()
        waiting = waiting_in(folder)
        of_a_run = not waiting or (folder / "config.yaml").exists()
        steps = [partial(_sync_run, source)] if of_a_run else []
        for step in [*steps, *(partial(_sync_evaluation, one) for one in waiting)]:
            try:
                step(command, processes, terminal)
            except (ValueError, OSError) as error:  # the others go on
                failed.append(error)
    for error in failed[:-1]:
        terminal.line(f"Error: {error}")
    if failed:
        raise failed[-1]


def _sync_run(source: str, command: Command, processes: Processes, terminal: Terminal) -> None:
    """A run's folder."""
    folder, content, wandb_id = read_run(Path(source).expanduser())
    recorded = recorded_settings(content, (), str(folder), trusted=None)
    wandb = command.wandb_over(recorded.plain["wandb"])
    settings = check({**recorded.plain, "wandb": wandb}, to_build=False)
    if processes.is_main:
        check_own(folder.resolve(), "upload it as the user who trained it")
        check_no_links(folder)
        with locked(folder):
            log_to_file(folder / "run.log")
            name = bring_up_to_date(folder, settings, wandb_id)
        terminal.line(f"{source} is at W&B as {name}")


def _sync_evaluation(
    folder: Path, command: Command, processes: Processes, terminal: Terminal
) -> None:
    """An evaluation that waits in a folder.

    Raises:
        ValueError: if W&B has not got it afterwards.
    """
    if not processes.is_main:
        return
    check_own(folder.resolve(), "upload it as the user who made it")
    check_no_links(folder)
    try:
        terminal.line(upload(folder, command.wandb_over({"setup": {}})["setup"]))
    except ConfigError:
        raise
    except Exception as error:
        raise ValueError(
            f"The evaluation in {folder} has not arrived at W&B ({one_line(error)}): check the "
            "network and `wandb login`, and try again."
        ) from error


def bring_up_to_date(folder: Path, settings: Settings, wandb_id: str) -> str:
    """Bring W&B up to date with a run that is not being trained; the run's name there.

    The records made offline go first, for what only they hold (pictures and histograms of every
    epoch, the machine's figures); then what W&B still lacks of the folder's own record.

    Raises:
        ConfigError: if there is nothing to upload.
        ValueError: if W&B has not got it afterwards.
    """
    rows = LocalSink(folder / METRICS).rows()
    if not rows:
        raise ConfigError(f"run={folder} has recorded no epoch yet: train it first.")
    results = folder / f"{RESULTS}.json"
    record = read_scores(results).record if results.exists() else None  # damaged: not W&B's fault

    def session() -> WandbSink:
        run = (folder, folder.name, wandb_id, without_secrets(settings))
        wandb = settings.wandb.model_copy(update={"save_code": False})  # it may be another by now
        return WandbSink(wandb, *run, None, "online", log.info)

    def caught_up(position: int) -> int:
        sink = session()
        sink.begin([row for row in rows if sink.position(row["step"]) < position])
        sink.close(failed=True)  # so far
        return sink.next

    try:
        upload_records(folder, caught_up)
        sink = session()
        _send(sink, folder, rows, record)
        sink.check_arrival()
    except Exception as error:
        raise ValueError(
            f"run={folder} has not arrived at W&B ({one_line(error)}): check the network and "
            "`wandb login`, and try again."
        ) from error
    return sink.path


def _send(sink: WandbSink, folder: Path, rows: list[dict], record: ScoreRecord | None) -> None:
    """What a run sends, in the order in which it does; record: of a finished one."""
    sink.begin(rows)
    now = (rows[-1]["epoch"], rows[-1]["step"])
    if record is not None:
        sink.trained(rows[-1]["step"])
        sink.summary(record.tracker_values())
        sink.pictures(sorted((folder / "figures").glob("*.png")), *now)
        page = folder / "report" / "report.html"
        if has_report(record, page.parent):
            sink.pictures(sorted(page.parent.glob("*.png")), *now)
            sink.page(page, *now)
        sink.tables(lambda: tables_in(folder), *now)
    for name in ("best", "last"):
        path = folder / "checkpoints" / f"{name}.pth"
        if path.exists():
            sink.checkpoint(name, path, checkpoints.metadata(checkpoints.read(path)))
    sink.close(failed=record is None)
