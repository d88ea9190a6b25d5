"""One optimiser step: gradients over micro-batches, acceptance, clipping, update, what follows it.

`TrainingStep` reads the losses from the device in every step. `DeferredSteps` (deferred.py) makes
the same step from the same methods without waiting for the device.
"""

import enum
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from datasets.loaders import Batch
from model.noise import Noise, NoisePurpose
from model.objective import LossModule, Objective
from utils.processes import collectives
from utils.processes.peers import PeerFailed
from utils.settings.schema.train import Train
from utils.training import diagnosis
from utils.training.state import TrainingState
from utils.training.stopping import CannotContinue


class Requests(NamedTuple):
    """What is to follow a step: the end of the run, a checkpoint."""

    stop: bool = False
    save: bool = False


class Outcome(enum.Enum):
    """What becomes of a step, given its losses and its gradient's norm."""

    ACCEPTED = enum.auto()
    RESCALED = enum.auto()  # the loss scaler made the gradient infinite: it leaves the step out
    OVER_THRESHOLD = enum.auto()  # skipped, see train.grad_skip_thr
    NONFINITE = enum.auto()  # skipped or the end of the run, see train.on_nonfinite


class TrainingStep:
    """Makes optimiser steps. The result is a function of (settings, state, micro-batches).

    train: the settings under train. requests(step): what this process asks for after that many
    steps; a request of any process is one to all.
    """

    def __init__(
        self,
        state: TrainingState,
        objective: Objective,
        train: Train,
        requests: Callable[[int], Requests],
    ):
        self.state, self.model, self.settings = state, state.model, train
        self.requests = requests
        self.threshold = train.grad_skip_thr or math.inf
        self.local_module = LossModule(state.model, objective)
        device = state.model.device
        if train.compile:
            self.local_module.compile(dynamic=False)
        capture = train.capture is True
        self.loss_module = collectives.wrap(self.local_module, device, train.acc_grad, capture)

    def __call__(self, micro_batches: list[Batch], beta: float | Tensor) -> Requests:
        """One optimiser step; adds its losses to the epoch's sums where they are finite.

        Returns what all processes agree is to follow.

        Raises:
            CannotContinue: on losses or gradients that are not finite where these may not be
                skipped, or after train.max_skipped_steps skipped steps in a row.
            PeerFailed: where another process's losses are not finite and may not be skipped.
        """
        progress = self.state.progress
        losses = self.gradients(micro_batches, beta, progress.step).tolist()
        finite = all(map(math.isfinite, losses))
        flags = (*self.requests(progress.step + 1), not finite)
        (stop, save, bad), means = collectives.agree_and_average(flags, losses)
        if bad and finite and self.settings.on_nonfinite == "stop":
            raise PeerFailed
        learns = self.state.objective is not None
        kl = torch.tensor(means[2:], device=self.model.device) if learns else None
        norm = self._update(bad, kl, partial(self._explain, micro_batches, beta, losses))
        progress.advance()
        if not bad and math.isfinite(norm):
            progress.record_losses(means, norm)
        return Requests(stop, save)

    def gradients(
        self, micro_batches: list[Batch], beta: float | Tensor, number: int | Tensor
    ) -> Tensor:
        """Compute the gradient of the step of this number, from 0 (still scaled, in float16).

        Returns (2 + L,), means over this process's images: loss (bits/dim), reconstruction and KL
        per layer (nats).
        """
        losses = 0.0
        self.model.train()
        self.state.optimizer.zero_grad(set_to_none=True)
        for index, batch in enumerate(micro_batches):
            with collectives.no_sync(self.loss_module, index < len(micro_batches) - 1):
                loss, reconstruction, kl = self._forward(self.loss_module, batch, beta, number)
                self.state.scaler.scale(loss / len(micro_batches)).backward()
            parts = [loss.detach()[None], reconstruction.detach().mean()[None], kl.detach().mean(0)]
            losses = losses + torch.cat(parts) / len(micro_batches)
        return losses

    def gradient_norm(self) -> Tensor:
        """Undo the loss scaling; returns the norm of the whole gradient, ()."""
        self.state.scaler.unscale_(self.state.optimizer)
        gradients = (parameter.grad for parameter in self.model.parameters())
        return nn.utils.get_total_norm([g for g in gradients if g is not None])

    def accepts(self, finite_losses: bool | Tensor, norm: float | Tensor) -> bool | Tensor:
        """Whether a step may be taken; from values on the device, the answer is there too."""
        return finite_losses & (norm <= self.threshold) & (norm < math.inf)  # a NaN is neither

    def clip(self, norm: Tensor) -> None:
        """Scale a gradient of this norm down to train.grad_clip, where it is over."""
        if self.settings.grad_clip:
            parameters = list(self.model.parameters())
            nn.utils.clip_grads_with_norm_(parameters, self.settings.grad_clip, norm)

    def apply(
        self, total: Callable[[Tensor], Tensor], kl: Tensor | None, accepted: Tensor | None = None
    ) -> None:
        """Step the optimiser, then the model's own statistics, the objective's and the average.

        total: the sum of a statistic over the processes. kl: of the step, per layer (L,), over the
        images of all processes, for an objective that learns. accepted: () bool where the device
        decides on the step, which the optimiser's `found_inf` and `total` tell already. The loss
        scaler's own `step` is not used: it would read whether the gradient is finite, which is
        known.
        """
        self.state.optimizer.step()
        self.model.after_optimizer_step(total)
        if self.state.objective:
            taken = torch.ones_like(kl[0], dtype=torch.bool) if accepted is None else accepted
            self.state.objective.record_step(kl, taken)
        if self.state.ema:
            self.state.ema.update(self.model, accepted)

    def _forward(
        self, module: Callable, batch: Batch, beta: float | Tensor, number: int | Tensor
    ) -> tuple[Tensor, ...]:
        """Loss (bits/dim), reconstruction (B,) and kl (B, L) of a step: the same every time."""
        keys = Noise.keyed(batch.ids, self.settings.seed, NoisePurpose.TRAINING, number).keys
        dtype = self.state.amp_dtype
        if self.settings.compile and not isinstance(beta, Tensor):  # each number is compiled anew
            beta = torch.full((), beta, dtype=torch.float64, device=keys.device)
        with torch.autocast(self.model.device.type, dtype, enabled=bool(dtype)):
            return module(batch.x, keys, beta)

    def _update(self, nonfinite_loss: bool, kl: Tensor | None, explain: Callable[[], str]) -> float:
        """Clip and apply the gradient, or skip it; returns its norm.

        kl: as `apply` takes it. explain: where values that are not finite come from, in words.
        """
        progress = self.state.progress
        total = self.gradient_norm()
        norm = float(total)
        outcome = self._outcome(nonfinite_loss, norm)
        if outcome is Outcome.NONFINITE and self.settings.on_nonfinite == "stop":
            raise CannotContinue(explain())
        if outcome is Outcome.ACCEPTED:
            self.clip(total)
            self.apply(collectives.total, kl)
        else:
            self.model.after_optimizer_step(torch.zeros_like)  # nothing of this step is remembered
        if outcome in (Outcome.ACCEPTED, Outcome.RESCALED):
            progress.skipped_in_a_row = 0
        else:
            progress.skip()
            self._check_skipped(outcome, norm, explain)
        collectives.average_statistics(self.model)  # which a skipped step's forward pass moves too
        self.state.scaler.update()
        return norm

    def _outcome(self, nonfinite_loss: bool, norm: float) -> Outcome:
        """On all processes the same: the losses are agreed on, the gradient is averaged."""
        rescaled = self.state.scaler.is_enabled() and not math.isfinite(norm)
        if rescaled and not nonfinite_loss:
            return Outcome.RESCALED
        if self.accepts(not nonfinite_loss, norm):
            return Outcome.ACCEPTED
        over = norm > self.threshold and not nonfinite_loss
        return Outcome.OVER_THRESHOLD if over else Outcome.NONFINITE

    def _check_skipped(self, outcome: Outcome, norm: float, explain: Callable[[], str]) -> None:
        count = self.state.progress.skipped_in_a_row
        if count < self.settings.max_skipped_steps:
            return
        if outcome is Outcome.NONFINITE:
            why = explain()
        else:
            remedy = "raise it, or lower train.optimizer.lr"
            over = f"over train.grad_skip_thr={self.threshold}"
            why = f"its gradient's norm {norm:.3g} is {over}: {remedy}"
        raise CannotContinue(f"{count} steps in a row were skipped, the last because {why}")

    def _explain(
        self, micro_batches: list[Batch], beta: float | Tensor, losses: list[float]
    ) -> str:
        """What of this step is not finite, and the layer where that begins."""
        number = self.state.progress.step
        forward = self.local_module.forward  # not what it is compiled to
        passes = [partial(self._forward, forward, batch, beta, number) for batch in micro_batches]
        return diagnosis.explain_nonfinite(self.model, losses, passes)
