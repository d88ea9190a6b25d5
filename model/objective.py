"""From a posterior pass to the loss and its named parts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from model.decoder import Latent
from model.ladder_vae import LadderOutput, LadderVAE
from model.noise import Noise

LEAST_RAMP = 5  # epochs: β changes once an epoch
KL_OFFSET = 0.01  # nats, so that a layer without any is charged something
KL_MEMORY = 0.9  # of the running means, from step to step


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

    def __call__(self, output: LadderOutput, beta: float | Tensor) -> LossParts:
        """The loss of a batch and its parts; in a captured step β is a tensor (), float64."""


@dataclass(frozen=True)
class BetaSchedule:
    """β in each epoch: rising linearly from `start` to `end`, once or in each of several cycles.

    It rises over the first `warmup` epochs of a cycle or, where `ramp` is given, over that share of
    it (Bowman et al. 2016; in cycles Fu et al. 2019). epochs: of all cycles together; None where
    there is one, without a ramp.

    Raises:
        ValueError: where β does not end at `end`, or there is nothing to rise or no epoch to do so.
    """

    start: float = 1.0
    end: float = 1.0
    warmup: int = 0
    cycles: int = 1
    ramp: float | None = None
    epochs: int | None = None

    def __post_init__(self):
        if self.cycles == 1 and self.ramp is None:
            return
        keys = f"model.beta_cycles={self.cycles} with model.beta_ramp={self.ramp}"
        if self.ramp is not None and self.warmup:
            raise ValueError(f"{keys} and model.warmup={self.warmup} say it twice: use one.")
        if self.start == self.end:
            raise ValueError(
                f"{keys} changes nothing where beta_start and beta_end are both {self.end}: use "
                "model.beta_start=0."
            )
        rising = self._rising
        if rising < LEAST_RAMP:
            raise ValueError(
                f"{keys} leaves {rising:.3g} of {self.epochs} epochs to each rise: use fewer "
                f"cycles or more epochs, so that it has {LEAST_RAMP} or more."
            )
        if self(self.epochs - 1) != self.end:
            raise ValueError(
                f"{keys} does not end at model.beta_end={self.end} in {self.epochs} epochs: use a "
                "smaller ramp (or warmup), or fewer cycles."
            )

    def __call__(self, epoch: int) -> float:
        """β in epoch 0, 1, …."""
        if self.cycles > 1:
            epoch = (epoch * self.cycles) % self.epochs / self.cycles  # within its cycle
        rising = self._rising
        if epoch >= rising:
            return self.end
        return self.start + (self.end - self.start) * epoch / rising

    @property
    def _rising(self) -> float:
        """Epochs of a cycle in which β rises."""
        return self.warmup if self.ramp is None else self.ramp * self.epochs / self.cycles


@dataclass(frozen=True)
class BetaNelbo:
    """(−log p(x | z, u) + β·KL) / (D ln 2), β by its schedule.

    free_bits_thr λ > 0: a floor of λ/size under the KL of each image and element of a latent with
    `size` elements. The free bits of Kingma et al. (2016) are another floor, under the minibatch
    mean of a group of elements, which single images may go below. Only KLs that are exact are
    floored: a context's is an estimate, and the floor of an estimate would be biased.
    """

    beta: BetaSchedule = BetaSchedule()
    free_bits_thr: float = 0.0

    def __call__(
        self, output: LadderOutput, beta: float | Tensor, weights: Tensor | float = 1.0
    ) -> LossParts:
        """The training loss of a batch and its parts; the parts are without floor and weights.

        weights: of the layers' KLs in the loss, (L,).
        """
        reconstruction, kl = output.reconstruction, output.kl
        penalty = kl
        if self.free_bits_thr > 0:
            penalty = torch.stack([self._floored(latent) for latent in output.latents], dim=1)
        dims = output.target[0].numel()
        loss = (reconstruction + beta * (weights * penalty).sum(1)).mean() / (dims * math.log(2.0))
        return LossParts(loss, reconstruction, kl)

    def _floored(self, latent: Latent) -> Tensor:
        kl = latent.kl.flatten(1)
        if latent.p.kl_is_exact:
            kl = kl.clamp(min=self.free_bits_thr / kl.shape[1])
        return kl.sum(1)


class StatefulObjective(nn.Module):
    """An objective that learns from the steps before; what it knows is saved with the run."""

    def record_step(self, kl: Tensor, accepted: Tensor) -> None:
        """Learn from a step: its KL per layer (L,), over the images of all processes.

        accepted: (), whether the step counts; where not, nothing may change.
        """
        raise NotImplementedError


class BalancedNelbo(StatefulObjective):
    """`BetaNelbo` which, while β rises, charges a layer γ_l KL_l (Vahdat & Kautz 2020).

    γ_l = g_l / mean_k g_k with g_l = (KL_l + 0.01)/α_l, where α_l is the layer's area over the
    number of layers of that size, over the smallest: what has little KL is charged little. KL_l is
    a running mean over the steps before, so that it depends neither on micro-batches nor on
    processes. A layer whose KL is an estimate (a context, which cannot collapse) keeps γ = 1 and is
    left out of the mean; where that is all layers, nothing is balanced.
    """

    def __init__(self, nelbo: BetaNelbo, layers: int):
        super().__init__()
        self.nelbo = nelbo
        self.register_buffer("kl", torch.zeros(layers))  # nats per image
        self.register_buffer("steps", torch.zeros(()))

    def beta(self, epoch: int) -> float:
        """β in epoch 0, 1, …."""
        return self.nelbo.beta(epoch)

    def forward(self, output: LadderOutput, beta: float | Tensor) -> LossParts:
        """The training loss of a batch and its parts; the parts are without floor and weights."""
        rising = beta != self.nelbo.beta.end
        if isinstance(rising, Tensor):
            weights = torch.where(rising, self.weights(output.latents), 1.0)
        else:
            weights = self.weights(output.latents) if rising else 1.0
        return self.nelbo(output, beta, weights)

    def weights(self, latents: Sequence[Latent]) -> Tensor:
        """γ of every layer, (L,); 1 before the first step."""
        balanced = [latent.p.kl_is_exact for latent in latents]
        if not any(balanced):
            return torch.ones_like(self.kl)
        sizes = [latent.z.shape[-1] for latent in latents]
        area = [size**2 / sizes.count(size) for size in sizes]
        smallest = min(a for a, exact in zip(area, balanced, strict=True) if exact)
        alpha, exact = self._on_device(area) / smallest, self._on_device(balanced)
        g = exact * (self.kl + KL_OFFSET) / alpha
        gamma = g * exact.sum() / g.sum() + (1.0 - exact)
        return torch.where(self.steps > 0, gamma, 1.0)

    def _on_device(self, values: Sequence[float]) -> Tensor:
        """(L,), for which no GPU is waited for, as it is to copy from the host."""
        return torch.stack([self.kl.new_full((), value) for value in values])

    @torch.no_grad()
    def record_step(self, kl: Tensor, accepted: Tensor) -> None:
        """Move the running means towards an accepted step's KL."""
        keep = torch.where(self.steps > 0, KL_MEMORY, 0.0)
        self.kl.copy_(torch.where(accepted, torch.lerp(kl.to(self.kl), self.kl, keep), self.kl))
        self.steps.add_(accepted)


class LossModule(nn.Module):
    """Model and objective as one module: what DistributedDataParallel must wrap and see called."""

    def __init__(self, model: LadderVAE, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(
        self, x: Tensor, keys: Tensor, beta: float | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, H, W), noise keys (B,) -> loss (bits/dim), reconstruction (B,), kl (B, L)."""
        parts = self.objective(self.model(x, noise=Noise(keys)), beta)
        return parts.loss, parts.reconstruction, parts.kl


def bits_per_dim(nats: Tensor | float, dims: int) -> Tensor | float:
    """nats / (D ln 2)."""
    return nats / (dims * math.log(2.0))
