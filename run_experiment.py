"""Train, test, report on, compare or draw models. Everything is a setting: configs/, the README.

python run_experiment.py experiment=digits_dct_ladder
python -u run_experiment.py experiment=mnist_dct_ladder dataset.root=$HOME/data
python run_experiment.py -m experiment=digits_ladder,digits_dct_ladder train.seed=0,1,2
mpiexec -n 4 python -u run_experiment.py experiment=cifar_dct_ladder
python run_experiment.py task=test checkpoint=runs/RUN
python run_experiment.py task=compare 'runs=[runs/digits_*]'
python run_experiment.py task=check_data experiment=cifar_ladder dataset=image_folder dataset.root=.
"""

import utils.processes.openmp  # noqa: F401, I001  before anything that loads OpenMP

import os
import sys
import traceback
from functools import partial
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datasets.loaders import EvaluationBatches, TrainBatches
from datasets.splits import ImageSplits
from model import LadderVAE
from utils.settings import build
from utils import checkpoint
from utils.runs import checkpoints
from utils import errors
from utils.settings import trust
from utils.settings import composition
from utils.processes import launch
from utils.processes import collectives
from utils.processes import devices
from utils.evaluation import quality
from utils.report import during_training
from utils.evaluation import scoring
from utils.training import announce
from datasets import fingerprint
from utils.tasks import reconstruct
from utils.tasks import sample
from utils.report import score_tables
from utils.tracking import wandb_fetch
from utils.processes.launch import Processes
from utils.files import write_scores
from utils.processes.peers import INTERRUPTED_MESSAGE
from utils.training.memory import check_memory, keep_freed
from utils.settings.rules import check
from utils.runs.folder import (
    RunFolder,
    expand_pattern,
    find_run_settings,
    locked,
    log_to_file,
    read_run,
)
from utils.runs.background import Saver
from utils.runs.signals import INTERRUPTED, Interrupted, Signals
from utils.terminal import Terminal
from utils.processes.threads import use_threads
from utils.tracking.tracker import open_tracker
from utils.training.trainer import Trainer, TrainingStopped
from utils.settings.validation import validate

MAIN_PROCESS = os.getpid()
SHOW_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"
TOLD = (ValueError, TrainingStopped, OSError, OmegaConfBaseException)  # in one sentence
FAILED: list[Exception] = []  # jobs of this command that ended with an error


def run(composed: DictConfig) -> None:
    """One job: what task.name says."""
    if problem := check("task.name", composition.resolve(composed.task).get("name")):
        raise errors.ConfigError(problem)
    processes = launch.start(composed.train.ddp)
    try:
        tasks = {"train": train, "compare": compare, "sync": sync, "check_data": check_data}
        tasks.get(composed.task.name, use)(composed, processes)
    except BaseException as error:
        status, told = getattr(error, "status", 1), None
        if not isinstance(error, (Interrupted, KeyboardInterrupt)):
            told = sentence(error) if isinstance(error, TOLD) else traceback.format_exc()
        end = launch.report_failure(status, told, error)
        if end is None:
            raise
        if processes.is_main:
            print(end.message, file=sys.stderr)
        sys.exit(end.status)
    finally:
        launch.stop()


def train(composed: DictConfig, processes: Processes) -> None:
    """Settings -> images -> model -> training -> the best checkpoint's test score."""
    settings, fetched = train_settings(composed, processes)
    validate(settings)
    terminal, folder = Terminal(processes.is_main), RunFolder(settings, processes)
    found = folder.results()
    if found and not settings["task"]["force"]:
        score_tables.show(terminal, found)
        terminal.line(f"Finished before, in {folder.path}; task.force=true trains it again.")
        if not (folder.path / "report" / "report.json").exists():
            terminal.line(f"It has no report: task=report checkpoint={folder.path} makes one.")
        return
    threads = use_threads(settings, processes)
    device = devices.pick_device(settings["train"]["device"], processes)
    check_memory(settings, device, processes.world)
    measures = collectives.main_first(
        processes, lambda: quality.prepare(settings["train"], device, terminal)
    )
    splits = collectives.main_first(processes, lambda: build.load_images(settings))
    images = fingerprint.fingerprint(splits.train)
    torch.manual_seed(settings["train"]["seed"])
    model, initial = build.build_model(settings), settings["train"]["init_from"]
    if initial is not None:
        locate = partial(checkpoint.locate, initial, settings["runs_dir"])
        checkpoint.initialise(model, collectives.main_first(processes, locate))  # fetched once
    model.place(device)
    optimizer, scheduler = build.build_optimizer(settings, model)
    batches = train_batches(settings, splits, device, processes)
    validation, held_out = (
        evaluation_batches(settings, splits, split, device, processes)
        for split in ("validation", "test")
    )
    with (
        Signals(settings["train"]["grace_seconds"]) as signals,
        folder.opened(bool(found), fetched),
        open_tracker(settings["wandb"], folder, model, terminal) as tracker,
    ):
        draw = partial(
            during_training.draw, folder, tracker, validation.first(during_training.PICTURED)
        )

        def write(name: str, state: dict) -> None:
            path = folder.save(name, {**state, "images": images, "threads": threads})
            if path in (folder.best, folder.last):
                tracker.checkpoint(name, path, checkpoints.metadata(state))

        trainer = Trainer(
            model,
            build.build_objective(settings),
            batches,
            validation,
            optimizer,
            scheduler,
            settings["train"],
            Saver(write) if processes.is_main else None,
            draw,
            tracker,
            terminal,
            signals,
        )
        saved = collectives.main_first(processes, lambda: checkpoints.newest(folder.last))
        if saved is not None:
            content, trouble = saved
            folder.check_images(content.get("images"), images)
            trainer.restore(content)
            threads = use_threads(settings, processes, content.get("threads"))
            if trouble:
                terminal.line(trouble)
        elif initial is None:  # else its weights go with its own context
            model.fit_context(batches.images, splits.max_value)
        tracker.begin(trainer.progress.epoch)
        announce.announce(terminal, folder, splits, trainer, processes, threads)
        tracker.summary(scoring.parameter_counts(model))
        trainer.fit()
        tracker.trained(trainer.progress.step)
        best = checkpoint.trained_model(settings, folder.best, device)
        found = scoring.score(best, settings, held_out, "test", folder.best, terminal, measures)
        folder.finish(found.record, found.per_image)
        tracker.summary(scoring.flat(found.record))
        score_tables.show(terminal, found.record)
        now = (trainer.progress.epoch, trainer.progress.step)
        draw(best, *now)
        if settings["task"]["report"]:
            pictures = report(best, found, settings, held_out, folder.path, processes, terminal)
            tracker.pictures(pictures, *now)
            tracker.page(folder.path / "report" / "report.html", *now)
        terminal.line(f"Checkpoints, metrics, pictures and the log are in {folder.path}")


def train_settings(
    composed: DictConfig, processes: Processes
) -> tuple[dict, wandb_fetch.FetchedRun | None]:
    """What to train: the command's settings, or those of the run that train.resume_id names.

    With a run that is not in runs_dir comes what W&B has of it.
    """
    wanted, fetched = composed.train.resume_id, None
    overrides = HydraConfig.get().overrides.task
    if wanted is None:
        return composition.resolve(composed), None
    if problem := check("train.resume_id", wanted):
        raise errors.ConfigError(problem)
    recorded = find_run_settings(composed.runs_dir, wanted.rpartition("/")[2])
    if recorded is None:
        setup, place = composition.resolve(composed.wandb.setup), checkpoint.cache()
        fetched = collectives.main_first(
            processes, lambda: wandb_fetch.fetch_run(wanted, setup, place)
        )
        recorded = checkpoints.settings_in(fetched.last, "train.resume_id")
        recorded["wandb"]["setup"].update(entity=fetched.entity, project=fetched.project)
    settings = composition.override_settings(recorded, overrides, f"train.resume_id={wanted}")
    trust.check_targets(settings, overrides, f"train.resume_id={wanted}")
    own = {"task": composition.resolve(composed.task), "wandb": wandb_settings(recorded, composed)}
    return {**settings, **own, "runs_dir": composed.runs_dir}, fetched


def wandb_settings(recorded: dict, composed: DictConfig) -> dict:
    """A run's wandb group, with what this command says of it."""
    group = OmegaConf.create({"wandb": recorded["wandb"]})
    for override in HydraConfig.get().overrides.task:
        key = override.partition("=")[0]
        if key.startswith("wandb."):
            OmegaConf.update(group, key, OmegaConf.select(composed, key))
    return composition.resolve(group)["wandb"]


def use(composed: DictConfig, processes: Processes) -> None:
    """task=test, report, sample, reconstruct: a checkpoint is all they need."""
    task, terminal = composition.resolve(composed.task), Terminal(processes.is_main)
    if composed.checkpoint is None:
        raise errors.ConfigError(
            f"checkpoint is not set: task={task['name']} needs checkpoint=… (a .pth file or the "
            "folder of a run)."
        )
    source = composed.checkpoint
    model, settings, file = load(source, composed, processes)
    output = Path(task["output"] or checkpoint.home(source, composed.runs_dir))
    if task["name"] == "sample":
        sample.sample(model, settings, output, terminal)
        return
    batches = held_out_batches(settings, model.device, processes)
    if task["name"] == "reconstruct":
        reconstruct.reconstruct(model, settings, batches, output, terminal)
        return
    measures = collectives.main_first(
        processes, lambda: quality.prepare(settings["train"], model.device, terminal)
    )
    found = scoring.score(model, settings, batches, task["split"], file, terminal, measures)
    score_tables.show(terminal, found.record)
    if processes.is_main:
        stem = f"{task['split']}_scores"
        path = write_scores(output, stem, found.record, found.per_image)
        terminal.line(f"Also in {path}")
    if task["name"] == "report":
        report(model, found, settings, batches, output, processes, terminal)


def compare(composed: DictConfig, processes: Processes) -> None:
    """task=compare: the scores of several runs, made where they are missing, side by side."""
    from utils.evaluation.compare import Run, sources, stored
    from utils.report.comparison import write_comparison

    task, terminal = composition.resolve(composed.task), Terminal(processes.is_main)
    overrides, runs = HydraConfig.get().overrides.task, []
    for source in sources(list(composed.runs)):
        run = stored(source, task, composed.runs_dir, overrides)
        if run is None:
            terminal.line(f"Scoring {source}")
            model, settings, file = load(source, composed, processes)
            batches = held_out_batches(settings, model.device, processes)
            found = scoring.score(model, settings, batches, task["split"], file, terminal)
            if processes.is_main:
                home, stem = checkpoint.home(source, composed.runs_dir), f"{task['split']}_scores"
                write_scores(home, stem, found.record, found.per_image)
            run = Run(found.record, found.per_image)
        runs.append(run)
    if processes.is_main:
        folder = Path(task["output"] or Path(composed.runs_dir, "compare")).absolute()
        write_comparison(runs, folder, terminal)


def sync(composed: DictConfig, processes: Processes) -> None:
    """task=sync: what runs recorded offline, or could not send, to W&B."""
    from utils.tasks.sync import sync as bring

    terminal = Terminal(processes.is_main)
    found = expand_pattern(composed.run) if composed.run else []
    if not found:
        raise errors.ConfigError(
            f"run={composed.run} names no run: task=sync needs run=… (its folder, or a pattern)."
        )
    for source in found:
        folder, settings, wandb_id = read_run(Path(source).expanduser())
        settings = {**settings, "wandb": wandb_settings(settings, composed)}
        if processes.is_main:
            with locked(folder):
                log_to_file(folder / "run.log")
                name = bring(folder, settings, wandb_id)
            terminal.line(f"{source} is at W&B as {name}")


def check_data(composed: DictConfig, processes: Processes) -> None:
    """task=check_data: what the data set holds, and what training on it takes."""
    from utils.tasks.check_data import check_data as look

    settings, terminal = composition.resolve(composed), Terminal(processes.is_main)
    validate(settings)
    if processes.is_main:
        device = devices.pick_device(settings["train"]["device"], processes)
        own = Path(settings["runs_dir"], "check_data", settings["dataset"]["name"])
        look(settings, device, Path(settings["task"]["output"] or own).absolute(), terminal)


def load(source: str, composed: DictConfig, processes: Processes) -> tuple[LadderVAE, dict, Path]:
    """A checkpoint's model, on this process's device; its settings for this task; its file."""
    device = devices.pick_device(composed.train.device, processes)
    overrides = HydraConfig.get().overrides.task
    locate = partial(checkpoint.locate, source, composed.runs_dir)
    file = collectives.main_first(processes, locate)  # fetched once
    model, loaded = checkpoint.load_model(file, overrides, device)
    settings = {**OmegaConf.to_container(loaded), "task": composition.resolve(composed.task)}
    validate(settings)
    use_threads(settings, processes)
    return model, settings, file


def report(
    model: LadderVAE,
    found: scoring.Score,
    settings: dict,
    batches: EvaluationBatches,
    output: Path,
    processes: Processes,
    terminal: Terminal,
) -> list[Path]:
    """The collapse report, in its own folder within `output`."""
    from utils.report.collapse_report import (
        write_report,  # matplotlib takes a second: only where it is used
    )

    folder = output / "report"
    return write_report(model, found, settings, batches, folder, processes, terminal)


def train_batches(
    settings: dict, splits: ImageSplits, device: torch.device, processes: Processes
) -> TrainBatches:
    """The training set, on the device."""
    return TrainBatches(
        splits.train.to(device),
        splits.max_value,
        settings["dataset"]["data_module"]["batch_size"],
        settings["train"]["seed"],
        settings["dataset"]["horizontal_flip"],
        processes.rank,
        processes.world,
        settings["train"]["acc_grad"],
    )


def held_out_batches(
    settings: dict, device: torch.device, processes: Processes
) -> EvaluationBatches:
    """The images that the task asks for."""
    splits = collectives.main_first(processes, lambda: build.load_images(settings))
    task = settings["task"]
    return evaluation_batches(
        settings, splits, task["split"], device, processes, task["num_images"]
    )


def evaluation_batches(
    settings: dict,
    splits: ImageSplits,
    split: str,
    device: torch.device,
    processes: Processes,
    num_images: int | None = None,
) -> EvaluationBatches:
    """This process's share of a split (of its first num_images), on the device."""
    return EvaluationBatches(
        getattr(splits, split)[:num_images].to(device),
        splits.max_value,
        settings["dataset"]["data_module"]["test_batch_size"],
        processes.rank,
        processes.world,
    )


@hydra.main(version_base="1.3", config_path="configs", config_name="defaults")
def job(composed: DictConfig) -> None:
    """`run`, with what a user can mend told in one sentence; the jobs of a sweep after it go on."""
    try:
        run(composed)
    except (Interrupted, KeyboardInterrupt) as asked:
        print(INTERRUPTED_MESSAGE, file=sys.stderr)
        sys.exit(getattr(asked, "status", INTERRUPTED))
    except TOLD as error:
        if os.getpid() != MAIN_PROCESS or SHOW_TRACEBACK:  # a launcher elsewhere must see it fail
            raise
        print(f"Error: {sentence(error)}", file=sys.stderr)
        FAILED.append(error)


def sentence(error: Exception) -> str:
    """What a person can mend."""
    return str(composition.explain(error) if isinstance(error, OmegaConfBaseException) else error)


def main() -> int:
    """Compose, run, and give an exit status."""
    composition.take_secrets(sys.argv)
    composition.quote_texts(sys.argv)
    keep_freed()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors of its own making and exits
    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        if SHOW_TRACEBACK:
            raise
        print(f"Error: {composition.explain(error)}", file=sys.stderr)
        return 1
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
