"""Posterior collapse: KL per layer and per unit, active units, collapsed units; over a whole split.

KL per layer: E_x KL(q(z_l | z_{>l}, x) ‖ p(z_l | z_{>l})), averaged over the passes of each image.

Active units (Burda, Grosse & Salakhutdinov 2016): the share of latent elements whose posterior mean
varies with the image, Var_x(E_q[z | x]) > 0.01. In a hierarchy E_q[z_l | x] is also over the layers
above. The variance of one ancestral pass's means would add what those layers' samples contribute,
and call a collapsed child of a noisy parent active. With M independent passes per image,
    Var_x(average over passes) − E_x(variance between passes)/M = Var_x(E_q[z_l | x])
without bias; for M = 2 it estimates the covariance of the passes' means. Its standard error for a
collapsed unit whose mean has variance 1 is sqrt(2/(N·M(M − 1))): `passes_for` keeps that well under
the threshold, or chance would call such units active.

(ε, δ)-collapse (Lucas, Tucker, Grosse & Norouzi 2019): a unit is collapsed where its KL is under ε
for at least 1 − δ of the images.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.ladder_vae import LadderOutput
from utils.processes import collectives

ACTIVE_THRESHOLD = 0.01
THRESHOLDS = tuple(10.0 ** (k / 8) for k in range(-40, 9))  # 1e-5 … 10, of the active-unit curve
EPSILONS = tuple(10.0 ** (k / 4) for k in range(-16, 5))  # 1e-4 … 10 nats
EPSILON, DELTA = 0.01, 0.01  # of the share named in tables
Z_95 = 1.959964  # standard errors to each side of a 95 % interval
MOMENTS = 8  # sums behind a unit's variance and its error


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
    kl_se: list[float]
    elements: list[int]  # latent elements per layer
    active: list[int]  # active ones per layer
    active_low: list[int]  # … whose 95 % interval is over the threshold
    active_high: list[int]  # … whose 95 % interval reaches over it
    collapsed: list[int]  # (ε, δ)-collapsed ones

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
    def active_units_interval(self) -> tuple[float, float]:
        """A conservative 95 % interval of `active_units`."""
        whole = sum(self.elements)
        return sum(self.active_low) / whole, sum(self.active_high) / whole

    @property
    def active_per_layer(self) -> list[float]:
        """Share of active elements in each layer."""
        return [a / n for a, n in zip(self.active, self.elements, strict=True)]


@dataclass(frozen=True)
class Units:
    """A layer's latent elements, each figure (elements,) float64 over all images."""

    shape: tuple[int, ...]  # (w, h, h)
    kl: Tensor  # nats, mean
    mean: Tensor  # E_x E_q[z | x]
    variance: Tensor  # Var_x(E_q[z | x]), unbiased: may be negative
    variance_se: Tensor  # standard error over images
    quiet: Tensor  # (len(EPSILONS), elements): share of images whose KL is under ε

    def active(self, threshold: float = ACTIVE_THRESHOLD) -> tuple[int, int, int]:
        """Units over the threshold: how many, for certain, and at most.

        Between the last two lie the units whose own 95 % interval holds the threshold: an interval
        for the count that is on the safe side.
        """
        margin = Z_95 * self.variance_se
        bounds = (self.variance, self.variance - margin, self.variance + margin)
        return tuple(int((values > threshold).sum()) for values in bounds)

    def collapsed(self, epsilon: int, delta: float = DELTA) -> int:
        """How many have a KL under EPSILONS[epsilon] for at least 1 − delta of the images."""
        return int((self.quiet[epsilon] >= 1.0 - delta).sum())


@dataclass(frozen=True)
class Collapse:
    """What the statistics found: per image (N,), float64 on the CPU, and per unit."""

    passes: int
    reconstruction: Tensor  # (N,) nats
    kl: Tensor  # (N, L) nats
    layers: list[Units]

    @property
    def nelbo(self) -> Tensor:
        """Reconstruction + KL: (N,) nats."""
        return self.reconstruction + self.kl.sum(1)

    def log_variances(self) -> dict[int, list[float]]:
        """log Var_x(E_q[z | x]) of the active units, by layer; layers without any left out."""
        active = [units.variance[units.variance > ACTIVE_THRESHOLD] for units in self.layers]
        return {layer: v.log().tolist() for layer, v in enumerate(active) if len(v)}

    def report(self) -> CollapseReport:
        """The means, and counts of units."""
        nelbo, nelbo_se = mean_and_error(self.nelbo)
        active, low, high = zip(*(units.active() for units in self.layers), strict=True)
        epsilon = EPSILONS.index(EPSILON)
        return CollapseReport(
            images=len(self.kl),
            passes=self.passes,
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
    """Sums over the images of a split, in float64; they add up over processes.

    images: how many the split has, over all processes.
    """

    def __init__(self, images: int):
        self.images, self.passes = images, 0
        self.ids: list[Tensor] = []
        self.per_image: list[Tensor] = []  # (B, 1 + L): reconstruction, kl…
        self.shapes: list[tuple[int, ...]] = []
        self.sums: list[Tensor] = []  # per layer, (MOMENTS + 1 + len(EPSILONS), elements)

    def update(self, ids: Tensor, passes: Iterable[LadderOutput]) -> None:
        """Add a batch, given two or more independent posterior passes of it; ids (B,).

        One pass is held at a time: together, those of a wide model would fill the memory.
        """
        rows, layers = 0.0, []
        for one in passes:
            rows = rows + _precise(torch.cat([one.reconstruction[:, None], one.kl], 1))
            layers = layers or [_OverPasses() for _ in one.latents]
            for layer, latent in zip(layers, one.latents, strict=True):
                layer.add(_precise(latent.q.mean.flatten(1)), _precise(latent.kl.flatten(1)))
            shapes = [tuple(latent.q.mean.shape[1:]) for latent in one.latents]
        self.passes, self.shapes = layers[0].count, shapes
        self.ids.append(ids.cpu())
        self.per_image.append((rows / self.passes).cpu())
        sums = [layer.sums() for layer in layers]
        old = self.sums or [torch.zeros_like(new) for new in sums]
        self.sums = [a + b for a, b in zip(old, sums, strict=True)]

    def finish(self) -> Collapse:
        """What was found over everything added, on all processes. Call it on every process."""
        per_image = collectives.by_image(self.ids, self.per_image, self.images)
        layers = []
        for shape, sums in zip(self.shapes, self.sums, strict=True):
            averages = collectives.total(sums).cpu() / self.images
            variance, error = _variance(averages[:MOMENTS], self.images)
            layers.append(
                Units(
                    shape=shape,
                    kl=averages[MOMENTS],
                    mean=averages[0],
                    variance=variance,
                    variance_se=error,
                    quiet=averages[MOMENTS + 1 :],
                )
            )
        return Collapse(self.passes, per_image[:, 0], per_image[:, 1:], layers)


class _OverPasses:
    """What passes of one batch say of a layer: running means and deviations (Welford 1962)."""

    def __init__(self):
        self.count = 0

    def add(self, mean: Tensor, kl: Tensor) -> None:
        """The posterior's mean and KL of each image and element, (B, elements), in one pass."""
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
    """Sums over a batch of what `_variance` needs; mean, error (B, elements)."""
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
    """In float64, on the CPU where the accelerator has none."""
    return values.cpu().double() if values.device.type == "mps" else values.double()
