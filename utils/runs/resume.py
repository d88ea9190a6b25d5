"""Which settings a command trains: its own, or those of the run that train.resume_id names."""

from pathlib import Path

from utils.errors import ConfigError
from utils.processes import watch
from utils.processes.collectives import check_same, from_main, main_first
from utils.processes.launch import Processes
from utils.runs.checkpoints import download_cache, newest, settings_in
from utils.runs.stored import find_run
from utils.runs.tensors import check_shapes, named_tensors
from utils.settings.build import build_without_numbers
from utils.settings.check import check, check_estimators, check_warm_up
from utils.settings.command_line import Command
from utils.settings.extension import resumed
from utils.settings.identity import of_all_processes, run_name
from utils.settings.recorded import recorded_settings
from utils.settings.schema import Settings
from utils.tracking.wandb_fetch import FetchedRun, fetch_run


def settings_to_train(command: Command, processes: Processes) -> tuple[Settings, FetchedRun | None]:
    """The settings; with those of a run that is not in runs_dir comes what W&B has of it.

    Raises:
        ConfigError: if there is no such run, or its settings are not to be trusted.
    """
    run_id = command.value("train.resume_id")
    if run_id is None:
        if command.settings.train.extended_from:
            raise ConfigError(
                "train.extended_from is set by train.resume_id=ID train.max_epochs=N, which trains "
                "a finished run longer: leave it out."
            )
        settings = command.settings
        if from_main(not Path(settings.runs_dir, run_name(settings)).exists()):
            check_warm_up(settings)
        return _agreed(settings), None
    source, fetched = f"train.resume_id={run_id}", None
    content, folders = find_run(command.value("runs_dir"), run_id.rpartition("/")[2])
    if content is None:
        setup, cache = command.wandb_setup(), download_cache()
        fetched = main_first(processes, lambda: fetch_run(run_id, setup, cache))  # once for all
        content = settings_in(fetched.last, "train.resume_id")
    own, settings = (
        recorded_settings(content, overrides, source, command.trusted, command.replaced)
        for overrides in ((), command.overrides)
    )
    settings = resumed(own, settings, source)
    if folders:
        _check_named(folders, [run_name(settings), run_name(own)], source)
    _check_sizes(own, fetched and fetched.last, source)
    if fetched and settings.train.max_epochs > own.train.max_epochs:
        _check_finished(fetched.last, own.train.max_epochs, source)
    wandb = settings.plain["wandb"]
    if fetched:
        place = {"entity": fetched.entity, "project": fetched.project}
        wandb = {**wandb, "setup": {**wandb["setup"], **place}}
    check_estimators(settings.task, settings.estimators)
    plain = {**settings.plain, "wandb": command.wandb_over(wandb)}
    return _agreed(check(plain, to_build=False)), fetched  # its model has been asked above


def _agreed(settings: Settings) -> Settings:
    """The settings, which all processes must have; they begin to hold for these."""
    check_same(of_all_processes(settings.plain))
    watch.end_when_stuck(settings.train.stuck_minutes)
    return settings


def _check_named(folders: list[Path], names: list[str], source: str) -> None:
    """One of a run's folders has a name under which it would be continued.

    Raises:
        ConfigError: if none has, for then a new run would begin.
    """
    if not {folder.name for folder in folders} & set(names):
        raise ConfigError(
            f"{source} is of the run in {folders[0]}, whose settings name it {names[-1]}: rename "
            "the folder to that (and what has that name now to another)."
        )


def _check_finished(last: Path, epochs: int, source: str) -> None:
    """A run is trained longer once it has come to its end.

    Raises:
        ConfigError: before.
    """
    done = (newest(last)[0].get("progress") or {}).get("epoch", 0)
    if done < epochs:
        raise ConfigError(
            f"{source} is at epoch {done} of {epochs}: finish it first, without train.max_epochs."
        )


def _check_sizes(settings: Settings, last: Path | None, source: str) -> None:
    """Its last checkpoint holds the model that its settings describe, before that is built.

    Raises:
        ValueError: if it does not.
    """
    last = last or Path(settings.runs_dir, run_name(settings), "checkpoints", "last.pth")
    content, _ = newest(last)
    if content:
        weights, wanted = named_tensors(content, "model", source), build_without_numbers(settings)
        check_shapes(weights, wanted.state_dict(), source, "train under another name=…")
