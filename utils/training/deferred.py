"""Steps that don't wait for a GPU: their losses are read every train.log_every steps only, by
several processes at least every ten.

The device itself decides whether a step is accepted, by the rule of `TrainingStep`, and leaves all
as it was where it isn't. From such a step on it accepts none, until the pending ones are done again
by `TrainingStep`, which knows what to do about each. Weights, counts and messages come out the
same.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from datasets.loaders import Batch, TrainBatches
from utils.processes import collectives
from utils.training.checkpointer import Checkpointer
from utils.training.state import TrainingState
from utils.training.step import Requests, TrainingStep

AGREED_EVERY = 10  # steps at the most, between which several processes hear no request to stop


def obstacle(state: TrainingState) -> str | None:
    """Why the host must read each step's losses before the next, if it must.

    The optimiser must be able to leave out a step by itself (`found_inf` of the fused kernels). A
    batch norm can't: every forward pass moves its running statistics.
    """
    if not all(group.get("fused") for group in state.optimizer.param_groups):
        return f"{type(state.optimizer).__name__} cannot leave out a step by itself"
    modules = state.model.modules()
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules):
        return "model.batch_norm=true moves its statistics in a step that is skipped, too"
    return None


class DeferredSteps:
    """As `TrainingStep`, with the losses of pending steps kept on the device.

    They are read every train.log_every steps, at the end of an epoch, where checkpoints go by the
    number of steps before each, and when the run is to stop or to be saved.
    """

    def __init__(self, step: TrainingStep, checkpointer: Checkpointer, batches: TrainBatches):
        self.step, self.state, self.checkpointer = step, step.state, checkpointer
        self.batches = batches
        self.pending: list[list[Batch]] = []
        self.rows: list[Tensor] = []  # of the pending steps, see `_unread`
        self.all_accepted = torch.ones((), dtype=torch.bool, device=step.model.device)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """What each step of an epoch, from `start` on, is called with."""
        return self.batches.epoch(epoch, start)

    def __call__(self, micro_batches: list[Batch], beta: float) -> Requests:
        """One optimiser step; returns requests when pending steps are read, and none otherwise.

        Raises:
            CannotContinue, PeerFailed: as `TrainingStep`, for any of the pending steps.
        """
        self._enqueue(micro_batches, beta)
        progress = self.state.progress
        progress.advance()
        if not self._flush_due():
            return Requests()
        self.flush_pending(beta)
        return Requests(*collectives.agree(*self.step.requests(progress.step)))

    def release(self) -> None:
        """Let go what only further steps need."""

    def flush_pending(self, beta: float) -> None:
        """Read the pending steps: record the accepted ones, and do the others again."""
        progress = self.state.progress
        rows = self._read()
        repeated = [step for step, row in zip(self.pending, rows, strict=True) if not row[0]]
        self.pending = []
        self.all_accepted.fill_(True)
        for accepted, norm, *losses in rows:
            if accepted:
                progress.skipped_in_a_row = 0
                progress.record_losses(losses, norm)
        progress.advance(-len(repeated))
        for pending in repeated:
            self._repeat(pending, beta)

    def _enqueue(self, micro_batches: list[Batch], beta: float) -> None:
        self.rows.append(self._unread(micro_batches, beta, self.state.progress.step))
        self.pending.append(micro_batches)

    def _read(self) -> list[list[float]]:
        """What `_unread` returned for each pending step, at the cost of one synchronisation."""
        rows, self.rows = torch.stack(self.rows).tolist(), []
        return rows

    def _repeat(self, micro_batches: list[Batch], beta: float) -> None:
        self.step(micro_batches, beta)

    def _unread(
        self, micro_batches: list[Batch], beta: float | Tensor, number: int | Tensor
    ) -> Tensor:
        """The step of this number, of which nothing is read from the device.

        Returns [accepted, norm, loss, reconstruction, KL per layer…], on the device, float64.
        """
        step, optimizer = self.step, self.state.optimizer
        losses = step.gradients(micro_batches, beta, number)
        norm = step.gradient_norm()
        accepted = step.accepts(losses.isfinite().all(), norm)
        means = collectives.mean(torch.cat([(~accepted)[None].to(losses), losses]).double())
        accepted = self.all_accepted.logical_and_(means[0] == 0)
        step.clip(norm)
        optimizer.found_inf = (~accepted).float()  # 1: its kernels leave all as it was
        step.apply(
            lambda values: torch.where(accepted, collectives.total(values), 0.0),
            means[3:],
            accepted,
        )
        del optimizer.found_inf
        self._update_scale(accepted)
        return torch.cat([accepted[None].to(means), norm[None].to(means), means[1:]])

    def _update_scale(self, accepted: Tensor) -> None:
        """Let the loss scaler count the step, and raise the scale, where it is accepted."""
        scaler = self.state.scaler
        if not scaler.is_enabled():
            return
        tensors = (scaler._scale, scaler._growth_tracker)  # it has no public names for them
        before = [tensor.clone() for tensor in tensors]
        scaler.update()
        for tensor, old in zip(tensors, before, strict=True):
            tensor.copy_(torch.where(accepted, tensor, old))

    def _flush_due(self) -> bool:
        """At the same steps on all processes; one alone reads whenever something is asked of it."""
        progress, every = self.state.progress, self.step.settings.log_every
        several = collectives.several()
        return (
            progress.step % (min(every, AGREED_EVERY) if several else every) == 0
            or progress.batch >= len(self.batches)
            or self.checkpointer.due_by_count(progress.step)
            or (not several and any(self.step.requests(progress.step)))
        )
