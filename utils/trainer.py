"""Training: epochs of optimiser steps, validation after each, checkpoints, early stopping.

The state is one record with save and restore. What a step does is a function of (settings, step):
a run continued from a checkpoint, in the middle of an epoch too, goes on as if never stopped.
"""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datasets.loaders import Batch, EvaluationBatches, TrainBatches
from model import LadderVAE
from model.noise import Noise
from model.objective import LossModule, Objective, bits_per_dim
from utils import distributed
from utils.collapse import CollapseReport
from utils.evaluation import posterior_collapse
from utils.terminal import Terminal, one_line
from utils.tracking import Tracker

TRAINING = 100  # keys the noise of training apart from evaluation's
PASSES = 2  # per validation image and epoch: quick; the final score takes as many as it needs


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and where the last good checkpoint is."""


class Interrupted(Exception):
    """Ctrl-C or SIGTERM; the run is saved and the same command continues it."""


@dataclass
class Progress:
    """Where a run is, and what it remembers."""

    epoch: int = 0
    batch: int = 0  # optimiser steps done in this epoch
    step: int = 0  # optimiser steps done, skipped ones included
    best: float = math.inf  # lowest validation loss, bits/dim
    best_epoch: int = 0
    skipped: int = 0  # steps skipped over all
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # spent in training steps, this epoch
    sums: list[float] = field(default_factory=list)  # this epoch's sums, see Trainer._train_step


class Trainer:
    """Trains `model` in place. `train`: the settings under train, of which it reads all numbers."""

    def __init__(
        self,
        model: LadderVAE,
        objective: Objective,
        batches: TrainBatches,
        validation: EvaluationBatches,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | ReduceLROnPlateau | None,
        train: dict,
        save: Callable[[str, dict], None],
        draw: Callable[[LadderVAE, int, int], None],
        tracker: Tracker,
        terminal: Terminal,
    ):
        self.model, self.objective = model, objective
        self.batches, self.validation, self.settings = batches, validation, train
        self.save, self.draw, self.tracker, self.terminal = save, draw, tracker, terminal
        self.device = model.device
        self.progress = Progress()
        self.optimizer, self.scheduler = optimizer, scheduler
        self.loss_module = distributed.wrap(LossModule(model, objective), self.device)
        self.ema = None
        if train["ema_rate"] > 0:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train["ema_rate"]))
        self.amp_dtype = distributed.amp_dtype(self.device) if train["use_amp"] else None
        scale = self.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scale)
        self.stop_asked = False

    @property
    def evaluated(self) -> LadderVAE:
        """The model that validation and testing use: the average of the weights where it is on."""
        return self.ema.module if self.ema else self.model

    def state(self) -> dict:
        """Everything that training needs to go on, as tensors and plain containers."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
        }

    def restore(self, state: dict) -> None:
        """Continue from `state()`."""
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])

    def fit(self) -> None:
        """Train until max_epochs or until validation stops improving.

        Raises:
            TrainingStopped: on a non-finite loss or gradient, nothing but skipped steps, or a
                checkpoint that cannot be written.
            Interrupted: after Ctrl-C or SIGTERM, once the step is finished and saved.
        """
        handlers = {s: signal.signal(s, self._ask_stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self.progress.step == 0:  # what would keep checkpoints from being written shows now
                self._save("last")
            while self.progress.epoch < self.settings["max_epochs"] and not self._out_of_patience():
                self._train_epoch()
                self._end_epoch()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _save(self, name: str) -> None:
        """A checkpoint; where it cannot be written, train.on_save_error says what follows."""
        try:
            self.save(name, self.state())
        except OSError as error:
            told = f"the checkpoint {name}.pth could not be written ({one_line(error)})"
            if self.settings["on_save_error"] == "stop":
                raise TrainingStopped(
                    f"Training stopped at step {self.progress.step}: {told}; make room and repeat "
                    "the command, or let it go on without by train.on_save_error=continue."
                ) from error
            self.terminal.line(f"Note: {told}; training goes on and tries again at the next one.")

    def _ask_stop(self, number: int, frame: object) -> None:
        if self.stop_asked:  # asked twice: at once
            raise KeyboardInterrupt
        self.stop_asked = True

    def _out_of_patience(self) -> bool:
        patience = self.settings["early_stopping_epochs"]
        p = self.progress
        return patience is not None and p.epoch - p.best_epoch >= patience > 0

    def _train_epoch(self) -> None:
        """The steps of this epoch that are still to do."""
        p, batches = self.progress, self.batches
        beta = self.objective.beta(p.epoch)
        saved = time.monotonic()
        title = f"epoch {p.epoch + 1}/{self.settings['max_epochs']}"
        with self.terminal.bar(title, len(batches), p.batch) as bar:
            for passes in batches.epoch(p.epoch, p.batch):
                began = time.perf_counter()
                self._train_step(passes, beta)
                p.seconds += time.perf_counter() - began
                bar.advance(self._progress_text())
                if distributed.any_process(self.stop_asked):
                    self._save("last")
                    raise Interrupted
                if time.monotonic() - saved > 60.0 * self.settings["checkpoint_every"]:
                    self._save("last")
                    saved = time.monotonic()

    def _train_step(self, passes: list[Batch], beta: float) -> None:
        """One optimiser step over `passes`; adds to the epoch's sums.

        sums: steps, loss, gradient norm, reconstruction, kl per layer (means over this process's
        images).
        """
        p, module = self.progress, self.loss_module
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums = 0.0
        for index, batch in enumerate(passes):
            keys = Noise.keyed(batch.ids, self.settings["seed"], TRAINING, p.step).keys
            with (
                torch.autocast(self.device.type, self.amp_dtype, enabled=bool(self.amp_dtype)),
                distributed.no_sync(module, index < len(passes) - 1),
            ):
                loss, reconstruction, kl = module(batch.x, keys, beta)
                self.scaler.scale(loss / len(passes)).backward()
            parts = torch.cat(
                [loss.detach()[None], reconstruction.detach().mean()[None], kl.detach().mean(0)]
            )
            sums = sums + parts / len(passes)
        loss, reconstruction, *kl = sums.tolist()
        if not all(map(math.isfinite, (loss, reconstruction, *kl))):
            self._stop(f"the loss is {loss}", reconstruction, kl)
        norm = self._update(reconstruction, kl)
        p.step, p.batch = p.step + 1, p.batch + 1
        row = [1.0, loss, norm, reconstruction, *kl]
        p.sums = [a + b for a, b in zip(p.sums, row, strict=True)] if p.sums else row

    def _update(self, reconstruction: float, kl: list[float]) -> float:
        """Clip, then step, unless the gradient's norm is over the threshold; returns the norm."""
        p, settings = self.progress, self.settings
        self.scaler.unscale_(self.optimizer)
        limit = settings["grad_clip"] or math.inf
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        overflow = self.scaler.is_enabled() and not math.isfinite(norm)  # lowers the scale instead
        threshold = settings["grad_skip_thr"] or math.inf
        if not overflow and (math.isnan(norm) or norm == threshold == math.inf):
            self._stop(f"the gradient's norm is {norm}", reconstruction, kl)
        if norm > threshold and not overflow:
            p.skipped, p.skipped_in_a_row = p.skipped + 1, p.skipped_in_a_row + 1
            if p.skipped_in_a_row >= settings["max_skipped_steps"]:
                self._stop(
                    f"{p.skipped_in_a_row} steps in a row had a gradient norm over "
                    f"train.grad_skip_thr={threshold} (the last one {norm:.3g}); raise it, or "
                    "lower train.optimizer.lr",
                    reconstruction,
                    kl,
                )
        else:
            p.skipped_in_a_row = 0
            self.scaler.step(self.optimizer)
            if self.ema:
                self.ema.update_parameters(self.model)
        self.scaler.update()
        return norm if math.isfinite(norm) else 0.0

    def _stop(self, why: str, reconstruction: float, kl: list[float]) -> None:
        layers = ", ".join(f"{value:.4g}" for value in kl)
        raise TrainingStopped(
            f"Training stopped at step {self.progress.step + 1}: {why}; reconstruction "
            f"{reconstruction:.4g} nats, KL per layer from the top [{layers}] nats; the last good "
            f"checkpoint is {self.tracker.folder / 'checkpoints' / 'last.pth'}."
        )

    def _end_epoch(self) -> None:
        """Validate, record, keep the best and the last; then the epoch counts as done."""
        p, settings = self.progress, self.settings
        with self.terminal.bar("validation", len(self.validation.ids)) as bar:
            collapse = posterior_collapse(
                self.evaluated, self.validation, settings["seed"], PASSES, bar.count
            )
        report = collapse.report()
        loss = bits_per_dim(report.nelbo, math.prod(self.model.image_shape))
        if not math.isfinite(loss):
            self._stop(f"the validation loss is {loss}", report.reconstruction, report.kl)
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)
        elif self.scheduler:
            self.scheduler.step()
        self._record(report, loss)
        improved = loss < p.best
        draw = (p.epoch + 1) % settings["eval_freq"] == 0
        p.epoch, p.batch, p.seconds, p.sums = p.epoch + 1, 0, 0.0, []
        if improved:
            p.best, p.best_epoch = loss, p.epoch
            self._save("best")
        self._save("last")
        if draw:
            self.draw(self.evaluated, p.epoch, p.step)
            histograms = collapse.log_variances().items()
            histograms = {f"collapse/log_variance_{layer}": v for layer, v in histograms}
            self.tracker.histograms(histograms, p.epoch, p.step)
        if distributed.any_process(self.stop_asked):
            raise Interrupted

    def _record(self, report: CollapseReport, loss: float) -> None:
        """This epoch's line: on the terminal, in the metrics, in W&B."""
        p = self.progress
        steps, train_loss, norm, reconstruction, *kl = p.sums
        images = self.batches.batch_size * steps / p.seconds
        values = {
            "train/loss": train_loss / steps,
            "train/reconstruction": reconstruction / steps,
            "train/kl": sum(kl) / steps,
            "train/grad_norm": norm / steps,
            "train/skipped_steps": p.skipped,
            "train/beta": self.objective.beta(p.epoch),
            "train/lr": self.optimizer.param_groups[0]["lr"],
            "train/images_per_second": images,
            "val/loss": loss,
            "val/nelbo": report.nelbo,
            "val/reconstruction": report.reconstruction,
            "val/kl": sum(report.kl),
            "val/active_units": report.active_units,
        }
        for layer, (value, active) in enumerate(
            zip(report.kl, report.active_per_layer, strict=True)
        ):
            values[f"collapse/kl_{layer}"] = value
            values[f"collapse/active_units_{layer}"] = active
        self.tracker.log(values, epoch=p.epoch + 1, step=p.step)
        left = (self.settings["max_epochs"] - p.epoch - 1) * p.seconds
        self.terminal.line(
            f"epoch {p.epoch + 1:>4}  train {train_loss / steps:.4f} bits/dim  "
            f"val {loss:.4f} bits/dim = {report.nelbo:.2f} nats (reconstruction "
            f"{report.reconstruction:.2f} + KL {sum(report.kl):.2f})  "
            f"active {report.active_units:.0%}  {images:,.0f} images/s  "
            f"left {time.strftime('%H:%M:%S', time.gmtime(left))}"
            + (f"  skipped {p.skipped}" if p.skipped else "")
            + ("  *" if loss < p.best else "")
        )

    def _progress_text(self) -> str:
        p = self.progress
        steps, loss, _, _, *kl = p.sums
        images = self.batches.batch_size * steps / p.seconds if p.seconds else 0.0
        return f"loss {loss / steps:.4f}  KL {sum(kl) / steps:.2f}  {images:,.0f} images/s"
