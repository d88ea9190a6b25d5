"""Posterior collapse: KL per layer and active units, over a whole data set.

KL per layer: E_x KL(q(z_l | z_{>l}, x) ‖ p(z_l | z_{>l})), averaged over the passes of each image.

Active units (Burda, Grosse & Salakhutdinov 2016): the share of latent elements whose posterior mean
varies with the image, Var_x(E_q[z | x]) > 0.01. In a hierarchy E_q[z_l | x] is also over the layers
above. The variance of one ancestral pass's means would add what those layers' samples contribute,
and call a collapsed child of a noisy parent active. With M independent passes per image,
    Var_x(average over passes) − E_x(variance between passes)/M = Var_x(E_q[z_l | x])
without bias; for M = 2 it estimates the covariance of the passes' means. Its standard error for a
collapsed unit whose mean has variance 1 is sqrt(2/(N·M(M − 1))): `passes_for` keeps that well under
the threshold, or chance would call such units active.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ladder_vae import LadderOutput
from utils import distributed

ACTIVE_THRESHOLD = 0.01


def passes_for(images: int) -> int:
    """Passes per image with which chance stays under a quarter of the threshold."""
    pairs = 2.0 / (images * (ACTIVE_THRESHOLD / 4.0) ** 2)  # M(M − 1)
    return max(2, math.ceil(0.5 + math.sqrt(0.25 + pairs)))


@dataclass(frozen=True)
class CollapseReport:
    """Means over all images; layers from the top."""

    images: int
    passes: int  # posterior passes per image
    reconstruction: float  # nats per image
    nelbo: float  # nats per image
    nelbo_se: float  # standard error over images
    kl: list[float]  # nats per image
    elements: list[int]  # latent elements per layer
    active: list[int]  # active ones per layer

    @property
    def kl_share(self) -> list[float]:
        """Each layer's share of the KL."""
        whole = sum(self.kl)
        return [kl / whole if whole else 0.0 for kl in self.kl]

    @property
    def active_units(self) -> float:
        """Share of active elements over all layers."""
        return sum(self.active) / sum(self.elements)

    @property
    def active_per_layer(self) -> list[float]:
        """Share of active elements in each layer."""
        return [a / n for a, n in zip(self.active, self.elements, strict=True)]


class CollapseStatistics:
    """Running sums over images, in float64; they add up over processes."""

    def __init__(self):
        self.per_image: Tensor | None = None  # sums of (1, reconstruction, nelbo, nelbo², kl…)
        self.passes = 0
        self.moments: list[Tensor] = []  # per layer, (3, elements): see variances

    def update(self, passes: Sequence[LadderOutput]) -> None:
        """Add a batch, given two or more independent posterior passes of it."""
        self.passes = len(passes)
        kl = torch.stack([_precise(one.kl) for one in passes]).mean(0)
        reconstruction = torch.stack([_precise(one.reconstruction) for one in passes]).mean(0)
        nelbo = reconstruction + kl.sum(1)
        ones = torch.ones_like(nelbo)
        columns = [ones, reconstruction, nelbo, nelbo.square(), *kl.unbind(1)]
        sums = torch.stack(columns).sum(1)
        self.per_image = sums if self.per_image is None else self.per_image + sums
        for layer, latents in enumerate(zip(*(one.latents for one in passes), strict=True)):
            means = torch.stack([_precise(latent.q.mean.flatten(1)) for latent in latents])
            mean, error = means.mean(0), means.var(0) / len(means)  # (B, elements)
            sums = torch.stack([mean.sum(0), mean.square().sum(0), error.sum(0)])
            if layer == len(self.moments):
                self.moments.append(torch.zeros_like(sums))
            self.moments[layer] += sums

    def variances(self) -> list[Tensor]:
        """Per layer, an unbiased estimate of each element's Var_x(E_q[z | x]); may be negative."""
        count = self.per_image[0]
        return [
            (squares - total.square() / count) / (count - 1.0).clamp(min=1.0) - errors / count
            for total, squares, errors in self.moments
        ]

    def report(self) -> CollapseReport:
        """The figures over everything added, on all processes. Call it once, on every process."""
        self.per_image = distributed.total(self.per_image)
        self.moments = [distributed.total(sums) for sums in self.moments]
        count, reconstruction, nelbo, squares, *kl = self.per_image.tolist()
        variances = self.variances()
        spread = max(squares / count - (nelbo / count) ** 2, 0.0)
        return CollapseReport(
            images=int(count),
            passes=self.passes,
            reconstruction=reconstruction / count,
            nelbo=nelbo / count,
            nelbo_se=(spread / max(count - 1, 1)) ** 0.5,
            kl=[k / count for k in kl],
            elements=[v.numel() for v in variances],
            active=[int((v > ACTIVE_THRESHOLD).sum()) for v in variances],
        )


def _precise(values: Tensor) -> Tensor:
    """In float64, on the CPU where the accelerator has none."""
    return values.cpu().double() if values.device.type == "mps" else values.double()
