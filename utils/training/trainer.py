"""Training: epochs of optimiser steps, validation after each, checkpoints, early stopping.

The state is one record with save and restore. What a step does is a function of (settings, step):
a run continued from a checkpoint, in the middle of an epoch too, goes on as if never stopped.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datasets.loaders import Batch, EvaluationBatches, TrainBatches
from model import LadderVAE
from model.noise import Noise
from model.objective import LossModule, Objective, bits_per_dim
from utils.evaluation.bound import posterior_collapse
from utils.evaluation.collapse import Collapse, CollapseReport
from utils.processes import collectives, devices
from utils.processes.peers import PeerFailed
from utils.runs.background import SaveFailed, Saver, snapshot
from utils.runs.signals import Interrupted, Signals
from utils.terminal import Terminal
from utils.tracking.tracker import Tracker
from utils.training import diagnosis
from utils.training.pace import Pace

TRAINING = 100  # keys the noise of training apart from evaluation's
COMPUTED = ("fused", "foreach")  # how an optimiser computes: this machine's, not the checkpoint's
PASSES = 2  # per validation image and epoch: quick; the final score takes as many as it needs


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and where the last good checkpoint is."""


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
    """Trains `model` in place. `train`: the settings under train, of which it reads all numbers.

    saver: None on processes that write no checkpoints.
    """

    def __init__(
        self,
        model: LadderVAE,
        objective: Objective,
        batches: TrainBatches,
        validation: EvaluationBatches,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | ReduceLROnPlateau | None,
        train: dict,
        saver: Saver | None,
        draw: Callable[[LadderVAE, int, int], None],
        tracker: Tracker,
        terminal: Terminal,
        signals: Signals,
    ):
        self.model, self.objective = model, objective
        self.batches, self.validation, self.settings = batches, validation, train
        self.saver, self.draw, self.tracker, self.terminal = saver, draw, tracker, terminal
        self.signals = signals
        self.device = model.device
        self.progress = Progress()
        self.optimizer, self.scheduler = optimizer, scheduler
        model.recompute(train["checkpoint_activations"])
        self.loss_module = collectives.wrap(
            LossModule(model, objective), self.device, train["acc_grad"]
        )
        self.ema = None
        if train["ema_rate"] > 0:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(train["ema_rate"]))
        self.amp_dtype = devices.amp_dtype(self.device) if train["use_amp"] else None
        scale = self.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scale)
        self.saved = time.monotonic()
        self.pace = Pace(train["log_every"])
        self.ahead = self._may_run_ahead()
        self.taken = torch.ones((), dtype=torch.bool, device=self.device)  # all steps not yet read
        self.unread: list[tuple[list[Batch], Tensor]] = []

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
        groups = self.optimizer.param_groups
        for saved, own in zip(state["optimizer"]["param_groups"], groups, strict=True):
            saved |= {key: own[key] for key in COMPUTED if key in own}
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])

    def fit(self) -> None:
        """Train until max_epochs or until validation stops improving.

        Raises:
            TrainingStopped: on loss, gradients or weights that are not finite, nothing but skipped
                steps, or a checkpoint that cannot be written.
            Interrupted: when asked to stop, once the step is finished and saved.
        """
        if self.progress.step == 0:  # what would keep checkpoints from being written shows now
            self._save("last", wait=True)
        with self.signals.awaited():
            while self.progress.epoch < self.settings["max_epochs"] and not self._out_of_patience():
                self._train_epoch()
                self._end_epoch()
            self._check_saves(wait=True)
            if any(collectives.agree(self.signals.asked)):
                raise Interrupted(self.signals.status)

    def _save(self, *names: str, wait: bool = False, alone: bool = False) -> None:
        """The state, to be written under these names while training goes on; or at once, to `wait`.

        Weights that are not finite, or not the same on all processes (which may not do this at the
        same time: `alone`), are not saved: they stop the run.
        """
        differing = None if alone else collectives.differing(self.model)
        if differing:
            self._stop(f"the processes have different weights, first {differing}")
        bad = diagnosis.bad_weights(self.model)
        if bad:
            self._stop(f"the weights are not finite, first {bad}")
        if self.saver:
            self.saver.put(list(names), snapshot(self.state()))
        self.saved = time.monotonic()
        if wait:
            self._check_saves(wait=True)

    def _check_saves(self, wait: bool = False) -> None:
        """Where a checkpoint could not be written since, train.on_save_error says what follows."""
        try:
            if self.saver and wait:
                self.saver.finish()
            elif self.saver:
                self.saver.check()
        except SaveFailed as error:
            self._save_failed(error)

    def _save_failed(self, error: SaveFailed) -> None:
        if self.settings["on_save_error"] == "stop":
            raise TrainingStopped(
                f"Training stopped at step {self.progress.step}: {error}; make room and repeat "
                "the command, or let it go on without by train.on_save_error=continue."
            ) from error
        self.terminal.line(f"Note: {error}; training goes on and tries again at the next one.")

    def _save_due(self) -> bool:
        """Whether train.checkpoint_every has gone by: minutes, or steps where it says so."""
        every = self.settings["checkpoint_every"]
        if isinstance(every, str):
            return (self.progress.step + 1) % int(every.split()[0]) == 0
        return time.monotonic() - self.saved >= 60.0 * every

    def _leave(self) -> None:
        """Save, and end the run as asked."""
        self._save("last", wait=True, alone=True)
        raise Interrupted(self.signals.status)

    def _out_of_patience(self) -> bool:
        patience = self.settings["early_stopping_epochs"]
        p = self.progress
        return patience is not None and p.epoch - p.best_epoch >= patience > 0

    def _train_epoch(self) -> None:
        """The steps of this epoch that are still to do."""
        p, batches = self.progress, self.batches
        beta = self.objective.beta(p.epoch)
        title = f"epoch {p.epoch + 1}/{self.settings['max_epochs']}"
        with self.terminal.bar(title, len(batches), p.batch) as bar:
            for passes in batches.epoch(p.epoch, p.batch):
                began = time.perf_counter()
                step = self._step_ahead if self.ahead else self._train_step
                stop, save = step(passes, beta)
                seconds = time.perf_counter() - began
                p.seconds += seconds
                if slow := self.pace.add(seconds):
                    self.terminal.line(slow)
                bar.advance(self._progress_text())
                self._check_saves()
                if stop:
                    self._leave()
                if save:
                    self._save("last")

    def _forward(self, module: nn.Module, batch: Batch, beta: float) -> tuple[Tensor, ...]:
        """Loss (bits/dim), reconstruction (B,) and kl (B, L) of this step: the same every time."""
        keys = Noise.keyed(batch.ids, self.settings["seed"], TRAINING, self.progress.step).keys
        with torch.autocast(self.device.type, self.amp_dtype, enabled=bool(self.amp_dtype)):
            return module(batch.x, keys, beta)

    def _train_step(self, passes: list[Batch], beta: float) -> tuple[bool, bool]:
        """One optimiser step over `passes`; adds to the epoch's sums.

        sums: steps, loss, gradient norm, reconstruction, kl per layer (means over this process's
        images); a step whose figures are not finite is not in them.

        Returns whether to stop, and whether a checkpoint is due: on all processes the same.
        """
        p = self.progress
        figures = self._gradients(passes, beta).tolist()
        finite = all(map(math.isfinite, figures))
        stop, save, bad = collectives.agree(self.signals.asked, self._save_due(), not finite)
        if bad and finite and self.settings["on_nonfinite"] == "stop":
            raise PeerFailed
        norm = self._update(bad, partial(self._where_from, passes, beta, figures))
        p.step, p.batch = p.step + 1, p.batch + 1
        if not bad and math.isfinite(norm):
            self._count(figures, norm)
        return stop, save

    def _gradients(self, passes: list[Batch], beta: float) -> Tensor:
        """The gradient of a step; its loss, reconstruction and kl per layer, (2 + L,)."""
        module, sums = self.loss_module, 0.0
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for index, batch in enumerate(passes):
            with collectives.no_sync(module, index < len(passes) - 1):
                loss, reconstruction, kl = self._forward(module, batch, beta)
                self.scaler.scale(loss / len(passes)).backward()
            parts = torch.cat(
                [loss.detach()[None], reconstruction.detach().mean()[None], kl.detach().mean(0)]
            )
            sums = sums + parts / len(passes)
        return sums

    def _count(self, figures: list[float], norm: float) -> None:
        """Add a step's figures to the epoch's sums."""
        loss, reconstruction, *kl = figures
        row = [1.0, loss, norm, reconstruction, *kl]
        sums = self.progress.sums or [0.0] * len(row)
        self.progress.sums = [a + b for a, b in zip(sums, row, strict=True)]

    def _may_run_ahead(self) -> bool:
        """Whether to wait for the device's word every train.log_every steps only.

        Its optimiser must be able to leave out a step by itself, and nothing else may move then.
        """
        fused = all(group.get("fused") for group in self.optimizer.param_groups)
        norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        return (
            self.device.type == "cuda"
            and fused
            and not (norms or self.ema or self.scaler.is_enabled())
        )

    def _step_ahead(self, passes: list[Batch], beta: float) -> tuple[bool, bool]:
        """`_train_step` with nothing read from the device, which itself finds what it may not take.

        From such a step on it takes none, until `_catch_up` does them again, one reading each.
        """
        p, settings = self.progress, self.settings
        figures = self._gradients(passes, beta)
        norm = self._norm()
        fine = figures.isfinite().all() & norm.isfinite()
        if settings["grad_skip_thr"]:
            fine &= norm <= settings["grad_skip_thr"]
        self.taken = taken = self.taken & (collectives.total((~fine).float()) == 0)
        self._clip(norm)
        self.optimizer.found_inf = (~taken).float()  # 1: its kernels leave all as it was
        self.optimizer.step()
        del self.optimizer.found_inf
        self.model.settle(lambda seen: torch.where(taken, collectives.total(seen), 0.0))
        self.unread.append((passes, torch.cat([taken[None].to(figures), norm[None], figures])))
        due, counted = self._save_due(), isinstance(settings["checkpoint_every"], str)
        p.step, p.batch = p.step + 1, p.batch + 1
        if p.step % settings["log_every"] and p.batch < len(self.batches) and not (due and counted):
            return False, False
        self._catch_up(beta)
        return tuple(collectives.agree(self.signals.asked, due))

    def _catch_up(self, beta: float) -> None:
        """Count the steps that were taken since the last reading, and do the others again."""
        p = self.progress
        rows = torch.stack([row for _, row in self.unread]).tolist()
        again = [passes for (passes, _), row in zip(self.unread, rows, strict=True) if not row[0]]
        self.unread, self.taken = [], torch.ones_like(self.taken)
        for taken, norm, *figures in rows:
            if taken:
                p.skipped_in_a_row = 0
                self._count(figures, norm)
        p.step, p.batch = p.step - len(again), p.batch - len(again)
        for passes in again:
            self._train_step(passes, beta)

    def _norm(self) -> Tensor:
        """The norm of the whole gradient."""
        gradients = (weight.grad for weight in self.model.parameters())
        return nn.utils.get_total_norm([g for g in gradients if g is not None])

    def _clip(self, norm: Tensor) -> None:
        """Scale the gradient down to train.grad_clip, where it is over."""
        if self.settings["grad_clip"]:
            parameters = list(self.model.parameters())
            nn.utils.clip_grads_with_norm_(parameters, self.settings["grad_clip"], norm)

    def _update(self, bad: bool, where_from: Callable[[], str]) -> float:
        """Clip, then step; returns the gradient's norm.

        A step is skipped where the norm is over the threshold, and where loss (`bad`) or gradient
        are not finite, unless that stops the run; where_from then says where it comes from.
        """
        p, settings = self.progress, self.settings
        self.scaler.unscale_(self.optimizer)
        total = self._norm()
        norm = float(total)
        threshold = settings["grad_skip_thr"] or math.inf
        # A scaler makes gradients infinite to find its scale; it skips those steps itself.
        scaling = self.scaler.is_enabled() and not bad and not math.isfinite(norm)
        over = norm > threshold and not scaling
        nonfinite = bad or not (scaling or over or math.isfinite(norm))
        if not (over or nonfinite):
            p.skipped_in_a_row = 0
            if not scaling:
                self._clip(total)
            self.scaler.step(self.optimizer)
            self.model.settle(collectives.total)
            if self.ema:
                self.ema.update_parameters(self.model)
        elif nonfinite and settings["on_nonfinite"] == "stop":
            self._stop(where_from())
        else:
            p.skipped, p.skipped_in_a_row = p.skipped + 1, p.skipped_in_a_row + 1
            self.model.settle(torch.zeros_like)  # nothing of this step is remembered
        if p.skipped_in_a_row >= settings["max_skipped_steps"]:
            remedy = f"over train.grad_skip_thr={threshold}: raise it, or lower train.optimizer.lr"
            why = where_from() if nonfinite else f"its gradient's norm {norm:.3g} is {remedy}"
            self._stop(f"{p.skipped_in_a_row} steps in a row were skipped, the last because {why}")
        collectives.average_statistics(self.model)  # which forward passes have moved in any case
        self.scaler.update()
        return norm

    def _where_from(self, passes: list[Batch], beta: float, figures: list[float]) -> str:
        """What of this step is not finite, and the layer where that begins."""
        loss, reconstruction, *kl = figures
        layers = ", ".join(f"{value:.4g}" for value in kl)
        parts = f"reconstruction {reconstruction:.4g} nats, KL per layer from the top [{layers}]"
        weights = diagnosis.bad_weights(self.model)
        if weights:
            return f"the weights are not finite, first {weights}; {parts}"
        if all(map(math.isfinite, figures)):
            gradient = diagnosis.bad_gradient(self.model)
            return f"the gradient is not finite, nearest the loss in {gradient}; {parts}"
        module = LossModule(self.model, self.objective)
        for batch in passes:
            found = diagnosis.bad_output(self.model, partial(self._forward, module, batch, beta))
            if found:
                return f"the loss is {loss}, first in {found}; {parts}"
        return f"the loss is {loss}; {parts}"

    def _stop(self, why: str) -> None:
        raise TrainingStopped(
            f"Training stopped at step {self.progress.step + 1}: {why}; the last good checkpoint "
            f"is {self.tracker.folder / 'checkpoints' / 'last.pth'}."
        )

    def _validate(self) -> Collapse:
        """Bound and active units on the validation set; asked to stop, it does so within it."""

        def tick(images: int) -> None:
            bar.count(images)
            if self.signals.asked:
                self._leave()

        with self.terminal.bar("validation", len(self.validation.ids)) as bar:
            return posterior_collapse(
                self.evaluated, self.validation, self.settings["seed"], PASSES, tick
            )

    def _end_epoch(self) -> None:
        """Validate, record, keep the best and the last; then the epoch counts as done."""
        p, settings = self.progress, self.settings
        collapse = self._validate()
        report = collapse.report()
        loss = bits_per_dim(report.nelbo, math.prod(self.model.image_shape))
        if not math.isfinite(loss):
            kl = ", ".join(f"{value:.4g}" for value in report.kl)
            self._stop(
                f"the validation loss is {loss}, reconstruction {report.reconstruction:.4g} nats, "
                f"KL per layer from the top [{kl}]"
            )
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)
        elif self.scheduler:
            self.scheduler.step()
        self._record(report, loss)
        improved = loss < p.best
        p.epoch, p.batch, p.seconds, p.sums = p.epoch + 1, 0, 0.0, []
        names = ["last"]  # written last: it speaks of the best
        if settings["keep_every"] and p.epoch % settings["keep_every"] == 0:
            names.insert(0, f"epoch_{p.epoch:05d}")
        if improved:
            p.best, p.best_epoch = loss, p.epoch
            names.insert(0, "best")
        self._save(*names)
        if p.epoch % settings["eval_freq"] == 0:
            self.draw(self.evaluated, p.epoch, p.step)
            histograms = collapse.log_variances().items()
            histograms = {f"collapse/log_variance_{layer}": v for layer, v in histograms}
            self.tracker.histograms(histograms, p.epoch, p.step)

    def _record(self, report: CollapseReport, loss: float) -> None:
        """This epoch's line: on the terminal, in the metrics, in W&B."""
        p = self.progress
        values = {
            "train/skipped_steps": p.skipped,
            "train/beta": self.objective.beta(p.epoch),
            "train/lr": self.optimizer.param_groups[0]["lr"],
            **self._training_means(),
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
        hours, left = divmod((self.settings["max_epochs"] - p.epoch - 1) * p.seconds, 3600)
        self.terminal.line(
            f"epoch {p.epoch + 1:>4}  train {values.get('train/loss', math.nan):.4f} bits/dim  "
            f"val {loss:.4f} bits/dim = {report.nelbo:.2f} nats (reconstruction "
            f"{report.reconstruction:.2f} + KL {sum(report.kl):.2f})  "
            f"active {report.active_units:.0%}  "
            f"{values.get('train/images_per_second', 0.0):,.0f} images/s  "
            f"left {hours:.0f}:{left // 60:02.0f}:{left % 60:02.0f}"
            + (f"  skipped {p.skipped}" if p.skipped else "")
            + ("  *" if loss < p.best else "")
        )

    def _training_means(self) -> dict[str, float]:
        """This epoch's means so far, by key; none where no step had finite figures."""
        p = self.progress
        if not p.sums:
            return {}
        steps, loss, norm, reconstruction, *kl = p.sums
        return {
            "train/loss": loss / steps,
            "train/reconstruction": reconstruction / steps,
            "train/kl": sum(kl) / steps,
            "train/grad_norm": norm / steps,
            "train/images_per_second": self.batches.batch_size * steps / p.seconds,
        }

    def _progress_text(self) -> str:
        means = self._training_means()
        if not means:
            return f"skipped {self.progress.skipped}"
        return (
            f"loss {means['train/loss']:.4f}  KL {means['train/kl']:.2f}  "
            f"{means['train/images_per_second']:,.0f} images/s"
        )
