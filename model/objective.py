"""From a posterior pass to the loss and its named parts."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from model.decoder import Latent
from model.ladder_vae import LadderOutput, LadderVAE
from model.noise import Noise


@dataclass(frozen=True)
class LossParts:
    """Per image, nats unless said otherwise."""

    loss: Tensor  # scalar, bits/dim: what is minimised
    reconstruction: Tensor  # (B,)
    kl: Tensor  # (B, number of latents)

    @property
    def nelbo(self) -> Tensor:
        """reconstruction + Σ kl: (B,)."""
        return self.reconstruction + self.kl.sum(1)


class Objective(Protocol):
    """What training minimises: any object with these two methods."""

    def beta(self, epoch: int) -> float:
        """The weight of the KL in epoch 0, 1, …, which training logs and hands to the call."""

    def __call__(self, output: LadderOutput, beta: float) -> LossParts:
        """The loss of a batch and its parts."""


@dataclass(frozen=True)
class BetaNelbo:
    """(−log p(x | z, u) + β·KL) / (D ln 2), β rising linearly over the first `warmup` epochs.

    free_bits_thr λ > 0: a floor of λ/size under the KL of each image and element of a latent with
    `size` elements. The free bits of Kingma et al. (2016) are another floor, under the minibatch
    mean of a group of elements, which single images may go below. Only KLs that are exact are
    floored: a context's is an estimate, and the floor of an estimate would be biased.
    """

    beta_start: float = 1.0
    beta_end: float = 1.0
    warmup: int = 0
    free_bits_thr: float = 0.0

    def beta(self, epoch: int) -> float:
        """β in epoch 0, 1, …: beta_start, …, beta_end from epoch `warmup` on."""
        if epoch >= self.warmup:
            return self.beta_end
        return self.beta_start + (self.beta_end - self.beta_start) * epoch / self.warmup

    def __call__(self, output: LadderOutput, beta: float) -> LossParts:
        """The training loss of a batch and its parts; the parts are without the floor."""
        reconstruction, kl = output.reconstruction, output.kl
        penalty = kl
        if self.free_bits_thr > 0:
            penalty = torch.stack([self._floored(latent) for latent in output.latents], dim=1)
        dims = output.target[0].numel()
        loss = (reconstruction + beta * penalty.sum(1)).mean() / (dims * math.log(2.0))
        return LossParts(loss, reconstruction, kl)

    def _floored(self, latent: Latent) -> Tensor:
        kl = latent.kl.flatten(1)
        if latent.p.kl_is_exact:
            kl = kl.clamp(min=self.free_bits_thr / kl.shape[1])
        return kl.sum(1)


class LossModule(nn.Module):
    """Model and objective as one module: what DistributedDataParallel must wrap and see called."""

    def __init__(self, model: LadderVAE, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, x: Tensor, keys: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, H, W), noise keys (B,) -> loss (bits/dim), reconstruction (B,), kl (B, L)."""
        parts = self.objective(self.model(x, noise=Noise(keys)), beta)
        return parts.loss, parts.reconstruction, parts.kl


def bits_per_dim(nats: Tensor | float, dims: int) -> Tensor | float:
    """nats / (D ln 2)."""
    return nats / (dims * math.log(2.0))
