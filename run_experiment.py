"""Train, test, report on, compare or draw models. Everything is a setting: configs/, docs/.

python run_experiment.py experiment=digits_dct_ladder
python -u run_experiment.py experiment=mnist_dct_ladder dataset.root=$HOME/data
python run_experiment.py -m experiment=digits_ladder,digits_dct_ladder train.seed=0,1,2
mpiexec -n 4 python -u run_experiment.py experiment=cifar_dct_ladder
python run_experiment.py task=test checkpoint=runs/RUN
python run_experiment.py task=compare 'runs=[runs/digits_*]'
python run_experiment.py task=check_data experiment=cifar_ladder dataset=image_folder dataset.root=.
"""

import utils.processes.openmp  # noqa: F401  before anything that loads OpenMP

# isort: split

import sys
from functools import partial

import hydra
import torch
from omegaconf import DictConfig

from datasets.fingerprint import fingerprint
from utils import checkpoint
from utils.evaluation.quality import prepare_alike
from utils.evaluation.scoring import parameter_counts
from utils.processes.collectives import check_same, main_first
from utils.processes.job import Job
from utils.processes.launch import Processes
from utils.report.final import conclude
from utils.report.run_figures import PICTURED, draw
from utils.report.tables import show_finished
from utils.runs.checkpoints import newest
from utils.runs.folder import RunFolder
from utils.runs.resume import settings_to_train
from utils.runs.signals import Signals
from utils.settings.build import build_model, build_objective, build_optimizer, build_own
from utils.settings.command_line import Command
from utils.settings.images import evaluation_batches, splits_of, train_batches
from utils.settings.threads import use_threads
from utils.tasks.command import run_command, run_job
from utils.tasks.table import TASKS
from utils.tracking.tracker import open_tracker
from utils.training.announce import announce
from utils.training.memory import check_memory
from utils.training.trainer import Trainer


def train(command: Command, processes: Processes) -> None:
    """Settings -> images -> model -> training -> the best checkpoint's scores and report."""
    settings, fetched = settings_to_train(command, processes)
    job, folder = Job.on(settings.train.device, processes), RunFolder(settings, processes)
    scored = folder.results.exists()
    start_over = scored and settings.task.force
    if scored and not start_over and not folder.cut_short:
        own, root = build_own(settings, "metrics"), settings.plain["dataset"].get("root")
        show_finished(job.terminal, folder.results, own, root)
        return
    check_memory(settings, job.device, processes.world)
    quality = prepare_alike(settings.train, job)
    splits = splits_of(settings, job)
    images = fingerprint(splits.train)
    torch.manual_seed(settings.train.seed)
    model = build_model(settings)
    if settings.train.init_from is not None:
        source = (settings.train.init_from, settings.runs_dir)
        checkpoint.initialise(model, main_first(processes, lambda: checkpoint.locate(*source)))
    model.to_device(job.device)
    optimizer, scheduler = build_optimizer(settings, model)
    batches = train_batches(settings, splits, job)
    validation = evaluation_batches(settings, splits, "validation", job)
    held_out = evaluation_batches(settings, splits, "test", job)
    trackers = build_own(settings, "trackers").values()
    with (
        Signals(settings.train.grace_seconds, processes.world > 1) as signals,
        folder.opened(start_over, fetched),
        open_tracker(settings.wandb, folder, model, job.terminal, trackers) as tracker,
    ):
        saved, trouble = main_first(processes, lambda: newest(folder.last))
        check_same({"the progress of last.pth": saved.get("progress")})
        threads = use_threads(settings, processes, saved.get("threads"))
        draw_figures = partial(draw, folder, tracker, validation.examples(PICTURED))
        trainer = Trainer(
            model,
            build_objective(settings),
            batches,
            validation,
            optimizer,
            scheduler,
            settings.train,
            saver=folder.saver(tracker, images=images, threads=threads),
            draw_figures=draw_figures,
            tracker=tracker,
            terminal=job.terminal,
            signals=signals,
            metrics=build_own(settings, "metrics"),
        )
        if saved:
            folder.check_images(saved.get("images"), images)
            trainer.restore(saved)
        elif settings.train.init_from is None:  # else its weights go with its own context
            model.fit_context(batches.images, splits.max_value)
        tracker.begin(trainer.progress.epoch)
        announce(settings, folder, splits, trainer, job, trouble)
        tracker.summary(parameter_counts(model))
        trainer.fit()
        tracker.trained(trainer.progress.step)
        best = checkpoint.trained_model(settings, folder.best, job.device)
        now = (trainer.progress.epoch, trainer.progress.step)
        conclude(best, settings, held_out, folder, tracker, job, quality, draw_figures, now)


@hydra.main(version_base="1.3", config_path="configs", config_name="defaults")
def job(composed: DictConfig) -> None:
    """One job of the command, as Hydra has composed it."""
    run_job(composed, {"train": train, **TASKS})


if __name__ == "__main__":
    sys.exit(run_command(job))
