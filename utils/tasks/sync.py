"""task=sync: what the folders of runs hold, brought to W&B."""

import logging
from pathlib import Path

from utils.errors import ConfigError
from utils.evaluation.record import ScoreRecord
from utils.processes.launch import Processes
from utils.runs import checkpoints
from utils.runs.folder import RESULTS, locked, log_to, matching, recorded_run
from utils.settings.command_line import Command
from utils.terminal import Terminal, one_line
from utils.tracking.sinks import METRICS, LocalSink
from utils.tracking.wandb_client import WandbSink, upload_records

log = logging.getLogger("ladder_vae")


def sync(command: Command, processes: Processes) -> None:
    """Every run that run=… names, brought up to date at W&B.

    Raises:
        ConfigError: if it names none.
    """
    terminal, pattern = Terminal(processes.is_main), command.value("run")
    found = matching(pattern) if pattern else []
    if not found:
        raise ConfigError(
            f"run={pattern} names no run: task=sync needs run=… (its folder, or a pattern)."
        )
    for source in found:
        folder, content, wandb_id = recorded_run(Path(source).expanduser())
        settings = {**content, "wandb": command.wandb_over(content["wandb"])}
        if processes.is_main:
            with locked(folder):
                log_to(folder / "run.log")
                name = bring_up_to_date(folder, settings, wandb_id)
            terminal.line(f"{source} is at W&B as {name}")


def bring_up_to_date(folder: Path, settings: dict, wandb_id: str) -> str:
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

    def session() -> WandbSink:
        group = settings["wandb"]
        return WandbSink(group, folder, folder.name, wandb_id, settings, None, "online", log.info)

    def caught_up(position: int) -> int:
        sink = session()
        sink.begin([row for row in rows if sink.position(row["step"]) < position])
        sink.close(failed=True)  # so far
        return sink.next

    try:
        upload_records(folder, caught_up)
        sink = session()
        _send(sink, folder, rows)
        sink.check_arrival()
    except Exception as error:
        raise ValueError(
            f"run={folder} has not arrived at W&B ({one_line(error)}): check the network and "
            "`wandb login`, and try again."
        ) from error
    return sink.path


def _send(sink: WandbSink, folder: Path, rows: list[dict]) -> None:
    """What a run sends, in the order in which it does."""
    sink.begin(rows)
    results, now = folder / f"{RESULTS}.json", (rows[-1]["epoch"], rows[-1]["step"])
    if results.exists():
        sink.trained(rows[-1]["step"])
        sink.summary(ScoreRecord.read(results).tracker_values())
        sink.pictures(sorted((folder / "figures").glob("*.png")), *now)
        page = folder / "report" / "report.html"
        if page.exists():
            sink.pictures(sorted(page.parent.glob("*.png")), *now)
            sink.page(page, *now)
    for name in ("best", "last"):
        path = folder / "checkpoints" / f"{name}.pth"
        if path.exists():
            sink.checkpoint(name, path, checkpoints.facts(checkpoints.read(path)))
    sink.close(failed=not results.exists())
