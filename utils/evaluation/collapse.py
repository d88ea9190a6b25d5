"""Posterior collapse over a whole split: KL per layer and unit, active units, collapsed units.

KL per layer: E_x KL(q(z_l | z_{>l}, x) ‖ p(z_l | z_{>l})), averaged over each image's posterior
samples.

Active units (Burda, Grosse & Salakhutdinov 2016): the share of latent elements whose posterior mean
varies with the image, Var_x(E_q[z | x]) > 0.01. In a hierarchy E_q[z_l | x] is also over the layers
above. The variance of the means from one ancestral sample per image would include the variance of
those layers' samples, and count a collapsed child of a noisy parent as active. With M independent
posterior samples per image,
    Var_x(average over samples) − E_x(variance between samples)/M = Var_x(E_q[z_l | x])
without bias; for M = 2 it estimates the covariance of the two samples' means. For a collapsed unit
whose mean has variance 1 its standard error is sqrt(2/(N·M(M − 1))): `posterior_samples_for` keeps
it well under the threshold, so that such units are not counted as active by chance.

(ε, δ)-collapse (Lucas, Tucker, Grosse & Norouzi 2019): a unit is collapsed where its KL is under ε
for at least 1 − δ of the images.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from model.ladder_vae import LadderOutput
from utils.processes import collectives

ACTIVE_THRESHOLD = 0.01
THRESHOLDS = tuple(10.0 ** (k / 8) for k in range(-40, 9))  # 1e-5 … 10, for active units
EPSILONS = tuple(10.0 ** (k / 4) for k in range(-16, 5))  # 1e-4 … 10 nats
EPSILON, DELTA = 0.01, 0.01  # of the collapsed units in tables
MIXED = 0.05  # a mixed unit's KL is under ε, and over it, for at least this share of the images
Z_95 = 1.959964  # half-width of a 95 % interval in standard errors
Amount = Annotated[int, Field(ge=0, le=2**53)]  # which a float holds exactly
Number = Annotated[Amount, Field(ge=1)]
MOMENTS = 8  # sums from which a unit's variance and its standard error follow


def posterior_samples_for(images: int) -> int:
    """Posterior samples per image that keep the standard error under a quarter of the threshold."""
    pairs = 2.0 / (images * (ACTIVE_THRESHOLD / 4.0) ** 2)  # M(M − 1)
    return max(2, math.ceil(0.5 + math.sqrt(0.25 + pairs)))


class CollapseReport(BaseModel, frozen=True, defer_build=True, populate_by_name=True):
    """Means over all images; lists are per layer from the top."""

    images: Number
    posterior_samples: Number = Field(alias="passes")  # per image; the files' key is `passes`
    reconstruction: float  # nats per image
    nelbo: float  # nats per image
    nelbo_se: float  # standard error over images
    kl: list[float]  # nats per image
    kl_se: list[float]
    elements: list[Number]  # latent elements per layer
    active: list[Amount]  # active ones per layer
    active_low: list[Amount]  # without those whose 95 % interval includes the threshold
    active_high: list[Amount]  # with all whose 95 % interval includes it
    collapsed: list[Amount]  # (ε, δ)-collapsed ones

    @property
    def kl_share(self) -> list[float]:
        """Each layer's share of the KL."""
        total = sum(self.kl)
        return [kl / total if total else 0.0 for kl in self.kl]

    @property
    def active_units(self) -> float:
        """Share of active elements over all layers."""
        return sum(self.active) / sum(self.elements)

    @property
    def active_units_interval(self) -> tuple[float, float]:
        """A conservative 95 % interval of `active_units`."""
        total = sum(self.elements)
        return sum(self.active_low) / total, sum(self.active_high) / total

    @property
    def active_per_layer(self) -> list[float]:
        """Share of active elements in each layer."""
        return [a / n for a, n in zip(self.active, self.elements, strict=True)]


@dataclass(frozen=True)
class LatentUnits:
    """Statistics of a layer's latent elements over all images: (elements,) float64 each."""

    shape: tuple[int, ...]  # (w, h, h)
    kl: Tensor  # nats, mean
    mean: Tensor  # E_x E_q[z | x]
    variance: Tensor  # Var_x(E_q[z | x]), unbiased: may be negative
    variance_se: Tensor  # standard error over images
    share_below_epsilon: Tensor  # (len(EPSILONS), elements): share of images with KL < ε

    def active(self, threshold: float = ACTIVE_THRESHOLD) -> tuple[int, int, int]:
        """The number of units over the threshold, and a smaller and a larger number.

        Units whose 95 % interval includes the threshold are all in the larger, none in the smaller:
        a conservative interval.
        """
        margin = Z_95 * self.variance_se
        bounds = (self.variance, self.variance - margin, self.variance + margin)
        return tuple(int((values > threshold).sum()) for values in bounds)

    def collapsed(self, epsilon: int, delta: float = DELTA) -> int:
        """The number of units with KL < EPSILONS[epsilon] for at least 1 − delta of the images."""
        return int((self.share_below_epsilon[epsilon] >= 1.0 - delta).sum())

    def mixed(self, epsilon: int) -> int:
        """The number of units whose KL is under EPSILONS[epsilon] for some of the images only."""
        share = self.share_below_epsilon[epsilon]
        return int(((share >= MIXED) & (share <= 1.0 - MIXED)).sum())


@dataclass(frozen=True)
class Collapse:
    """A split's statistics per image, float64 on the CPU, and per unit."""

    posterior_samples: int  # per image
    reconstruction: Tensor  # (N,) nats
    kl: Tensor  # (N, L) nats
    layers: list[LatentUnits]

    @property
    def nelbo(self) -> Tensor:
        """Reconstruction + KL: (N,) nats."""
        return self.reconstruction + self.kl.sum(1)

    @property
    def surely_active(self) -> list[Tensor]:
        """Of each layer, which units are over the threshold beyond chance: bool.

        By intervals that hold for all units of the model at once (Bonferroni): that any unit under
        the threshold is among them has a probability of 5 % at most, however few the posterior
        samples; of images it needs some dozens.
        """
        units = sum(len(layer.variance) for layer in self.layers)
        margin = torch.special.ndtri(torch.tensor(1.0 - 0.05 / units, dtype=torch.float64))
        bounds = [layer.variance - margin * layer.variance_se for layer in self.layers]
        return [bound > ACTIVE_THRESHOLD for bound in bounds]

    @property
    def surely_active_units(self) -> float:
        """Share of elements over all layers that are active beyond chance."""
        return torch.cat(self.surely_active).double().mean().item()

    def log_variances(self) -> dict[int, list[float]]:
        """log Var_x(E_q[z | x]) of the units active beyond chance, for layers that have any."""
        active = [
            layer.variance[sure]
            for layer, sure in zip(self.layers, self.surely_active, strict=True)
        ]
        return {layer: v.log().tolist() for layer, v in enumerate(active) if len(v)}

    def report(self) -> CollapseReport:
        """Means over the images, and numbers of active and collapsed units."""
        nelbo, nelbo_se = mean_and_error(self.nelbo)
        active, low, high = zip(*(units.active() for units in self.layers), strict=True)
        epsilon = EPSILONS.index(EPSILON)
        return CollapseReport(
            images=len(self.kl),
            posterior_samples=self.posterior_samples,
            reconstruction=self.reconstruction.mean().item(),
            nelbo=nelbo,
            nelbo_se=nelbo_se,
            kl=self.kl.mean(0).tolist(),
            kl_se=[mean_and_error(kl)[1] for kl in self.kl.unbind(1)],
            elements=[units.kl.numel() for units in self.layers],
            active=list(active),
            active_low=list(low),
            active_high=list(high),
            collapsed=[units.collapsed(epsilon) for units in self.layers],
        )


class CollapseStatistics:
    """Sums over the images of a split, in float64; sums of several processes are added.

    images: the number of images of the split, over all processes.
    """

    def __init__(self, images: int):
        self.images, self.posterior_samples = images, 0
        self.ids: list[Tensor] = []
        self.per_image: list[Tensor] = []  # (B, 1 + L): reconstruction, kl…
        self.shapes: list[tuple[int, ...]] = []
        self.sums: list[Tensor] = []  # per layer, (MOMENTS + 1 + len(EPSILONS), elements)

    def update(self, ids: Tensor, samples: Iterable[LadderOutput]) -> None:
        """Add a batch, given two or more independent posterior samples of it; ids (B,).

        One sample is held at a time: together, those of a wide model would fill the memory.
        """
        rows, layers = 0.0, []
        for output in samples:
            rows = rows + _precise(torch.cat([output.reconstruction[:, None], output.kl], 1))
            layers = layers or [_SampleMoments() for _ in output.latents]
            for layer, latent in zip(layers, output.latents, strict=True):
                layer.add(_precise(latent.q.mean.flatten(1)), _precise(latent.kl.flatten(1)))
            self.shapes = [tuple(latent.q.mean.shape[1:]) for latent in output.latents]
        self.posterior_samples = layers[0].count
        self.ids.append(ids.cpu())
        self.per_image.append((rows / self.posterior_samples).cpu())
        sums = [layer.sums() for layer in layers]
        old = self.sums or [torch.zeros_like(new) for new in sums]
        self.sums = [a + b for a, b in zip(old, sums, strict=True)]

    def finish(self) -> Collapse:
        """The statistics of all batches of all processes. Collective: call it on every process."""
        per_image = collectives.by_image(self.ids, self.per_image, self.images)
        layers = []
        for shape, sums in zip(self.shapes, self.sums, strict=True):
            averages = collectives.total(sums).cpu() / self.images
            variance, error = _variance(averages[:MOMENTS], self.images)
            layers.append(
                LatentUnits(
                    shape=shape,
                    kl=averages[MOMENTS],
                    mean=averages[0],
                    variance=variance,
                    variance_se=error,
                    share_below_epsilon=averages[MOMENTS + 1 :],
                )
            )
        return Collapse(self.posterior_samples, per_image[:, 0], per_image[:, 1:], layers)


class _SampleMoments:
    """A layer's running mean and variance over posterior samples of a batch (Welford 1962)."""

    def __init__(self):
        self.count = 0

    def add(self, mean: Tensor, kl: Tensor) -> None:
        """Add one sample's posterior mean and KL of each image and element: (B, elements)."""
        self.count += 1
        if self.count == 1:
            self.mean, self.kl, self.squares = mean.clone(), kl.clone(), torch.zeros_like(mean)
            return
        step = mean - self.mean
        self.mean += step / self.count
        self.squares += step * (mean - self.mean)
        self.kl += (kl - self.kl) / self.count

    def sums(self) -> Tensor:
        """Over the batch: (MOMENTS + 1 + len(EPSILONS), elements)."""
        error = self.squares / ((self.count - 1) * self.count)  # of the mean: its variance
        rows = [*_moments(self.mean, error), self.kl.sum(0)]
        rows += [(self.kl < epsilon).sum(0).double() for epsilon in EPSILONS]
        return torch.stack(rows)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of (N,) values and its standard error, 0 for a single one."""
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return values.mean().item(), error


def _moments(mean: Tensor, error: Tensor) -> list[Tensor]:
    """Sums over a batch of the moments that `_variance` needs; mean, error (B, elements)."""
    square = mean.square()
    powers = (mean, square, square * mean, square.square(), error)
    crossed = (error.square(), mean * error, square * error)
    return [values.sum(0) for values in (*powers, *crossed)]


def _variance(averages: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Var_x(E_q[z | x]) of each unit and its standard error, from the averages of `_moments`.

    The error is the delta method's: the deviation over images of (m − μ)² − e, over sqrt(N).
    """
    m1, m2, m3, m4, e1, e2, me, m2e = averages
    spread = m2 - m1.square()
    variance = spread * images / max(images - 1, 1) - e1
    fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1.square() * m2 - 3.0 * m1**4
    crossed = m2e - 2.0 * m1 * me + m1.square() * e1
    second = fourth - 2.0 * crossed + e2
    return variance, ((second - (spread - e1).square()).clamp(min=0.0) / images).sqrt()


def _precise(values: Tensor) -> Tensor:
    """In float64; on the CPU where the accelerator has no float64 (MPS)."""
    return values.cpu().double() if values.device.type == "mps" else values.double()
