"""Steps that don't wait for a GPU: their losses are read every train.log_every steps only.

The device itself decides whether a step is accepted, by the rule of `TrainingStep`, and leaves all
as it was where it isn't. From such a step on it accepts none, until the pending ones are done again
by `TrainingStep`, which knows what to do about each. Weights, counts and messages come out the
same.
"""

import torch
from torch import Tensor, nn

from datasets.loaders import Batch
from utils.processes import collectives
from utils.training.checkpointer import Checkpointer
from utils.training.state import TrainingState
from utils.training.step import Requests, TrainingStep


def can_defer(state: TrainingState) -> bool:
    """Whether steps may be queued on the device without a host-device synchronisation.

    Its optimiser must be able to leave out a step by itself (`found_inf` of the fused kernels). A
    batch norm can't: every forward pass moves its running statistics.
    """
    fused = all(group.get("fused") for group in state.optimizer.param_groups)
    modules = state.model.modules()
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
    return state.model.device.type == "cuda" and fused and not batch_norm


class DeferredSteps:
    """As `TrainingStep`, with the losses of pending steps kept on the device.

    They are read every train.log_every steps, at the end of an epoch, and where checkpoints go by
    the number of steps before each.
    """

    def __init__(self, step: TrainingStep, checkpointer: Checkpointer, steps_per_epoch: int):
        self.step, self.state, self.checkpointer = step, step.state, checkpointer
        self.steps_per_epoch = steps_per_epoch
        self.pending: list[tuple[list[Batch], Tensor]] = []  # with [accepted, norm, losses…]
        self.all_accepted = torch.ones((), dtype=torch.bool, device=step.model.device)

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

    def flush_pending(self, beta: float) -> None:
        """Read the pending steps: record the accepted ones, and do the others again."""
        progress = self.state.progress
        rows = torch.stack([row for _, row in self.pending]).tolist()
        repeated = [step for (step, _), row in zip(self.pending, rows, strict=True) if not row[0]]
        self.pending, self.all_accepted = [], torch.ones_like(self.all_accepted)
        for accepted, norm, *losses in rows:
            if accepted:
                progress.skipped_in_a_row = 0
                progress.record_losses(losses, norm)
        progress.advance(-len(repeated))
        for micro_batches in repeated:
            self.step(micro_batches, beta)

    def _enqueue(self, micro_batches: list[Batch], beta: float) -> None:
        """A step of which nothing is read from the device."""
        step, optimizer = self.step, self.state.optimizer
        losses = step.gradients(micro_batches, beta)
        norm = step.gradient_norm()
        accepted = step.accepts(losses.isfinite().all(), norm)
        means = collectives.mean(torch.cat([(~accepted)[None].to(losses), losses]).double())
        self.all_accepted = accepted = self.all_accepted & (means[0] == 0)
        step.clip(norm)
        optimizer.found_inf = (~accepted).float()  # 1: its kernels leave all as it was
        step.apply(
            lambda values: torch.where(accepted, collectives.total(values), 0.0),
            means[3:],
            accepted,
        )
        del optimizer.found_inf
        self._update_scale(accepted)
        self.pending.append(
            (micro_batches, torch.cat([accepted[None].to(means), norm[None].to(means), means[1:]]))
        )

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
        progress = self.state.progress
        return (
            progress.step % self.step.settings.log_every == 0
            or progress.batch >= self.steps_per_epoch
            or self.checkpointer.due_by_count(progress.step)
        )
