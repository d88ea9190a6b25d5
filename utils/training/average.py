"""Averaged weights: the exponential moving average of a model's weights over training steps."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from model import LadderVAE


class AveragedWeights(nn.Module):
    """A copy of the model, `module`, with averaged parameters and the model's latest buffers.

        average ← decay · average + (1 − decay) · weight,    the first time average ← weight

    The number of updates, and whether there is one, are tensors on the model's device: no update
    waits for it. The state has the names and the values of torch.optim.swa_utils.AveragedModel's.
    """

    n_averaged: Tensor  # updates so far, ()

    def __init__(self, model: LadderVAE, decay: float):
        super().__init__()
        self.module, self.decay = deepcopy(model), decay
        counter = torch.zeros((), dtype=torch.long, device=model.device)
        self.register_buffer("n_averaged", counter)

    @torch.no_grad()
    def update(self, model: LadderVAE, accepted: Tensor | None = None) -> None:
        """Take in the model's weights; accepted: where that is False, (), nothing changes."""
        if accepted is None:
            accepted = torch.ones_like(self.n_averaged, dtype=torch.bool)
        averages, weights = list(self.module.parameters()), list(model.parameters())
        share = averages[0].new_full((), 1.0 - self.decay)
        share = torch.where(self.n_averaged == 0, 1.0, share)
        share = torch.where(accepted, share, 0.0)
        torch._foreach_lerp_(averages, weights, [share.to(a.dtype) for a in averages])
        for average, latest in zip(self.module.buffers(), model.buffers(), strict=True):
            average.copy_(torch.where(accepted, latest, average))
        self.n_averaged += accepted
