"""Training: epochs of optimiser steps, validation after each, checkpoints, early stopping.

What a step does is a function of (settings, step): a run continued from a checkpoint, in the middle
of an epoch too, goes on as if it had never stopped.
"""

import math
import time
from collections.abc import Callable
from functools import cached_property
from types import MappingProxyType

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from datasets.loaders import Batch, EvaluationBatches, TrainBatches
from model import LadderVAE
from model.objective import Objective, bits_per_dim
from utils.evaluation.bound import posterior_collapse
from utils.evaluation.collapse import Collapse, CollapseReport
from utils.evaluation.metrics import STANDARD, Metrics, checked, metric_values
from utils.processes import collectives, watch
from utils.runs.background import Saver
from utils.runs.signals import Interrupted, Signals
from utils.settings.schema.train import Train
from utils.terminal import Terminal
from utils.tracking.tracker import Tracker
from utils.training import diagnosis
from utils.training.checkpointer import Checkpointer
from utils.training.deferred import DeferredSteps, obstacle
from utils.training.metrics import EpochMetrics
from utils.training.pace import Pace
from utils.training.progress import Progress
from utils.training.state import TrainingState
from utils.training.static import StaticSteps, why_not
from utils.training.step import Requests, TrainingStep
from utils.training.stopping import CannotContinue, TrainingStopped

# Per validation image and epoch: quick, and enough to tell which units are active beyond chance.
# The final score takes as many as tell of every unit.
POSTERIOR_SAMPLES = 2
VALIDATION_SEED = 0  # of what validation draws: the best checkpoint is found alike in every run
MINUTE = 60.0  # between lines about an epoch that takes longer


class Trainer:
    """Trains `model` in place.

    train: the settings under train. saver: None on processes that write no checkpoints.
    draw_figures(model, epoch, step): called every train.eval_freq epochs. metrics: a user's own,
    of each layer, recorded every epoch beside the standard ones.
    """

    def __init__(
        self,
        model: LadderVAE,
        objective: Objective,
        batches: TrainBatches,
        validation: EvaluationBatches,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | ReduceLROnPlateau | None,
        train: Train,
        *,
        saver: Saver | None,
        draw_figures: Callable[[LadderVAE, int, int], None],
        tracker: Tracker,
        terminal: Terminal,
        signals: Signals,
        metrics: Metrics = MappingProxyType({}),
    ):
        model.recompute(train.checkpoint_activations)
        self.objective, self.batches, self.validation = objective, batches, validation
        self.settings, self.draw_figures = train, draw_figures
        self.metrics = {**STANDARD, **checked(metrics)}
        self.tracker, self.terminal, self.signals = tracker, terminal, signals
        self.state = TrainingState(model, optimizer, scheduler, train, objective)
        self.checkpointer = Checkpointer(self.state, saver, train, terminal)
        self.step = TrainingStep(self.state, objective, train, self._requests)
        self.deferred = self._static_steps() or self._deferred_steps()
        self.pace = Pace(train.log_every)

    @property
    def model(self) -> LadderVAE:
        """The model that the optimiser moves."""
        return self.state.model

    @property
    def progress(self) -> Progress:
        """Where the run is."""
        return self.state.progress

    def restore(self, content: dict) -> None:
        """Continue from the content of a checkpoint; one of a shorter run goes on in this one."""
        recorded = content.get("config", {}).get("train", {}).get("extended_from")
        self.state.load_state_dict(content, self.settings.extended_from != recorded)

    def fit(self) -> None:
        """Train until max_epochs or until validation stops improving.

        Raises:
            TrainingStopped: on loss, gradients or weights that are not finite, nothing but skipped
                steps, or a checkpoint that cannot be written.
            Interrupted: when asked to stop, once the step is finished and saved.
        """
        try:
            if self.progress.step == 0:  # what would keep checkpoints from being written shows now
                self.checkpointer.save("last", wait=True)
            with self.signals.between_steps():
                while not self._finished():
                    self.train_epoch()
                    self.end_epoch()
                self.checkpointer.settle()
                if any(collectives.agree(self.signals.stop_requested)):
                    raise Interrupted(self.signals.status)
        except CannotContinue as error:
            raise TrainingStopped(
                f"Training stopped at step {self.progress.step + 1}: {error}; the last good "
                f"checkpoint is {self.tracker.folder / 'checkpoints' / 'last.pth'}."
            ) from error
        finally:
            with self.signals.between_steps():  # a first signal doesn't interrupt the waiting
                self.checkpointer.close()
            if self.deferred:
                self.deferred.release()

    def train_epoch(self) -> None:
        """The steps of this epoch that are still to do."""
        progress = self.progress
        beta = self.objective.beta(progress.epoch)
        title = f"epoch {progress.epoch + 1}/{self.settings.max_epochs}"
        with self.terminal.bar(title, len(self.batches), progress.batch, every=MINUTE) as bar:
            source = self.deferred or self.batches
            for micro_batches in source.epoch(progress.epoch, progress.batch):
                requests = self._timed_step(micro_batches, beta)
                bar.advance(self._progress_text())
                self.checkpointer.check()
                if requests.stop:
                    self._save_and_leave()
                if requests.save:
                    self.checkpointer.save("last")

    def train_step(self, micro_batches: list[Batch], beta: float) -> Requests:
        """One optimiser step on this process's share of a batch; what all agree is to follow."""
        return (self.deferred or self.step)(micro_batches, beta)

    def defer_steps(self) -> DeferredSteps:
        """Steps that don't wait for the device, to be used as `deferred`."""
        return DeferredSteps(self.step, self.checkpointer, self.batches)

    def validate(self) -> Collapse:
        """Bound and active units on the validation set; a signal to any process ends it early."""
        left = len(self.validation.ids)  # of this process's share

        def tick(images: int) -> None:
            nonlocal left
            left -= images
            bar.count(images)
            if self.signals.stop_requested:
                watch.ask_to_stop()
            stop = self.signals.stop_requested or watch.stop_asked()
            # Each process gets here once: when it is to stop, or has come to its end.
            if (stop or left == 0) and any(collectives.agree(stop)):
                self._save_and_leave()

        with self.terminal.bar("validation", len(self.validation.ids), every=MINUTE) as bar:
            model = self.state.evaluation_model
            return posterior_collapse(
                model, self.validation, VALIDATION_SEED, POSTERIOR_SAMPLES, tick
            )

    def end_epoch(self) -> None:
        """Validate, record, keep the best and the last; then the epoch counts as done."""
        progress, settings = self.progress, self.settings
        collapse = self.validate()
        report = collapse.report()
        loss = self._validation_loss(report)
        self._record(collapse, report, loss)
        self._step_scheduler(loss)
        improved = progress.end_epoch(loss)
        names = ["last"]  # written last: it speaks of the best
        if settings.keep_every and progress.epoch % settings.keep_every == 0:
            names.insert(0, f"epoch_{progress.epoch:05d}")
        if improved:
            names.insert(0, "best")
        self.checkpointer.save(*names)
        if progress.epoch % settings.eval_freq == 0:
            self._draw(collapse)

    def _static_steps(self) -> StaticSteps | None:
        """Steps to be captured as a CUDA graph, where train.capture asks for them and it can be."""
        capture, on_gpu = self.settings.capture, self.model.device.type == "cuda"
        if not capture or (capture == "auto" and not on_gpu):
            return None
        reason = why_not(self.step, self.batches)
        [refused] = collectives.agree(reason is not None)  # wandb.watch is on the main one alone
        if refused:
            reason = reason or "another process cannot"
            self.terminal.line(f"Note: training steps are not captured as a CUDA graph: {reason}.")
            return None
        return StaticSteps(self.step, self.checkpointer, self.batches, self.terminal.line)

    def _deferred_steps(self) -> DeferredSteps | None:
        """Steps that don't wait for the device, where it can do without."""
        deferred = self.model.device.type == "cuda" and not obstacle(self.state)
        return self.defer_steps() if deferred else None

    def _requests(self, step: int) -> Requests:
        """What this process asks for after so many steps."""
        return Requests(self.signals.stop_requested, self.checkpointer.due(step))

    def _finished(self) -> bool:
        progress, patience = self.progress, self.settings.early_stopping_epochs
        if progress.epoch >= self.settings.max_epochs:
            return True
        since = max(progress.best_epoch, self._settled, *(self.settings.extended_from or [0]))
        return patience is not None and progress.epoch - since >= patience > 0

    @cached_property
    def _settled(self) -> int:
        """The epoch from which β is what it is at the end: before, no bound need improve."""
        last = self.settings.max_epochs - 1
        beta, end = self.objective.beta, self.objective.beta(last)
        return max((epoch + 1 for epoch in range(last) if beta(epoch) != end), default=0)

    def _timed_step(self, micro_batches: list[Batch], beta: float) -> Requests:
        began = time.perf_counter()
        requests = self.train_step(micro_batches, beta)
        seconds = time.perf_counter() - began
        self.progress.seconds += seconds
        if warning := self.pace.add(seconds):
            self.terminal.line(warning)
        return requests

    def _save_and_leave(self) -> None:
        """End the run as asked, in all processes at once."""
        self.checkpointer.save("last", wait=True)
        raise Interrupted(self.signals.status)

    def _validation_loss(self, report: CollapseReport) -> float:
        """The negative ELBO in bits/dim."""
        loss = bits_per_dim(report.nelbo, math.prod(self.model.image_shape))
        if not math.isfinite(loss):
            terms = diagnosis.loss_terms(report.reconstruction, report.kl)
            raise CannotContinue(f"the validation loss is {loss}, {terms}")
        return loss

    def _step_scheduler(self, loss: float) -> None:
        scheduler = self.state.scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(loss)
        elif scheduler:
            scheduler.step()

    def _record(self, collapse: Collapse, report: CollapseReport, loss: float) -> None:
        """This epoch's line: on the terminal, in the metrics, in W&B."""
        progress = self.progress
        metrics = EpochMetrics(
            epoch=progress.epoch + 1,
            step=progress.step,
            skipped_steps=progress.skipped,
            seconds=progress.seconds,
            beta=self.objective.beta(progress.epoch),
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            training=progress.means(self.batches.batch_size),
            loss=loss,
            validation=report,
            active_units=collapse.surely_active_units,
            per_layer=metric_values(self.metrics, collapse),
        )
        self.tracker.log(metrics.tracker_values(), epoch=metrics.epoch, step=metrics.step)
        seconds_left = (self.settings.max_epochs - metrics.epoch) * progress.seconds
        self.terminal.fields(metrics.terminal_fields(seconds_left, loss < progress.best))

    def _draw(self, collapse: Collapse) -> None:
        epoch, step = self.progress.epoch, self.progress.step
        self.draw_figures(self.state.evaluation_model, epoch, step)
        log_variances = collapse.log_variances().items()
        histograms = {f"collapse/log_variance_{layer}": v for layer, v in log_variances}
        self.tracker.histograms(histograms, epoch, step)

    def _progress_text(self) -> str:
        means = self.progress.means(self.batches.batch_size)
        return means.summary() if means else f"skipped {self.progress.skipped}"
