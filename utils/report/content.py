"""The content of report.json: the score's record, and what each layer carries."""

import math
from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field, computed_field
from torch import Tensor

from utils.evaluation.collapse import (
    ACTIVE_THRESHOLD,
    DELTA,
    EPSILON,
    EPSILONS,
    THRESHOLDS,
    Z_95,
    LatentUnits,
    mean_and_error,
)
from utils.evaluation.information import Aggregate, Histogram, Intervention, layer_masks
from utils.evaluation.probes import Probes
from utils.evaluation.record import ScoreRecord
from utils.evaluation.scoring import Score

NATS_PER_BIT = math.log(2.0)
MOSTLY_COLLAPSED = 0.1  # share of active units under which a layer has mostly collapsed
LITTLE_KL = 0.02  # share of the KL under which a layer carries little
VISIBLE_NATS = 0.005  # the smallest difference that two decimals show
KL_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)  # of a layer's KL over the images
RANKED = 5  # images of least and of most KL that are shown
NEGLIGIBLE_NATS = 0.1  # KL under which an inactive layer counts as collapsed


class Estimate(BaseModel, frozen=True):
    """A mean over images and its standard error."""

    value: float
    se: float


class Ablation(BaseModel, frozen=True):
    """The bound with some layers drawn from their priors, in nats per image."""

    kept: int | None = Field(None, exclude_if=lambda kept: kept is None)  # top layers kept
    nelbo: float
    nelbo_se: float
    reconstruction: float
    reconstruction_se: float
    rate: float  # KL of the layers kept
    lost: float  # −ELBO less that of the whole model, paired over the images
    lost_se: float


class UnitFigures(BaseModel, frozen=True):
    """A figure of every unit of a layer, in the order of (w, h, h) flattened; six digits each."""

    kl: list[float]  # nats
    kl_bits: list[float]
    kl_share: list[float]  # of the KL of all layers
    kl_cumulative_share: list[float]  # of this unit and all units, of any layer, of larger KL
    mean: list[float]  # E_x E_q[z | x]
    variance: list[float]  # Var_x(E_q[z | x])
    variance_se: list[float]
    quiet_share: list[float]  # share of images whose KL is under EPSILON


class RankedImages(BaseModel, frozen=True):
    """A layer's KL by image: where it has collapsed locally, and where it carries most."""

    quantiles: list[float]  # nats, at KL_QUANTILES
    negligible: float  # share of images with less than NEGLIGIBLE_NATS
    least: list[int]  # indices of the images of least KL, among those scored
    most: list[int]  # … of most, the largest last


class LayerReport(BaseModel, frozen=True):
    """What one layer carries; layer 0 is the top."""

    layer: int
    name: str  # its number, marked if it is the context
    context: bool
    shape: list[int]
    units: int
    kl: float  # nats per image
    kl_se: float
    kl_bits: float
    kl_share: float
    kl_cumulative_share: float
    active: int
    active_low: int
    active_high: int
    collapsed: int
    mixed: int  # units whose KL is under EPSILON for some images only
    by_image: RankedImages
    without: Ablation  # this layer drawn from its prior
    # None where densities cannot be asked for: of somebody else's model
    information: Estimate | None  # of this layer and those above, in nats
    information_added: Estimate | None  # of this layer, given those above
    saturated: bool
    residual: Estimate | None
    histogram: Histogram | None
    active_by_threshold: list[tuple[int, int, int]]
    collapsed_by_epsilon: list[int]
    per_unit: UnitFigures

    @property
    def passive(self) -> bool:
        """Whether its figures say that it carries little or nothing."""
        return self.active < MOSTLY_COLLAPSED * self.units or self.kl_share < LITTLE_KL

    @computed_field
    @property
    def verdict(self) -> str:
        """One sentence on the layer: its state, and what the bound loses without it."""
        lost, error = self.without.lost, Z_95 * self.without.lost_se
        if abs(lost) <= max(error, VISIBLE_NATS):
            within = max(0.01, math.ceil(100.0 * (abs(lost) + error)) / 100.0)
            effect = f"the same within {within:.2f} nats"
        else:
            effect = f"{abs(lost):.2f} ± {error:.2f} nats {'worse' if lost > 0 else 'better'}"
        return f"{self._state()}; without it the bound is {effect}."

    @property
    def has_collapsed(self) -> bool:
        """Whether no unit is active and the KL is negligible."""
        return self.active == 0 and self.kl < max(NEGLIGIBLE_NATS, self.units * EPSILON)

    def _state(self) -> str:
        """Whether the layer is active, has collapsed, or is in between, as the glossary says."""
        name = called(self).capitalize()
        nats = f"{self.kl:.2f} nats"
        if self.has_collapsed and self.kl >= NEGLIGIBLE_NATS:  # little for so many units
            nats += f", which are {self.kl / self.units:.1g} nats per unit"
        counts = f"{nats}, {self.active:,} of {self.units:,} units active"
        if self.has_collapsed:
            return f"{name} has collapsed: {counts}"
        if self.active == 0:
            return (
                f"{name} costs {self.kl:.2f} nats yet has none of its {self.units:,} units active"
            )
        if self.active < MOSTLY_COLLAPSED * self.units:
            return f"{name} has mostly collapsed: {counts}"
        state = "carries little" if self.kl_share < LITTLE_KL else "is active"
        return f"{name} {state}: {counts}, {self.kl_share:.1%} of the KL"


def called(layer: LayerReport) -> str:
    """The layer within a sentence."""
    return "the context" if layer.context else f"layer {layer.layer}"


class ReportContent(ScoreRecord, frozen=True):
    """Every figure of the collapse report: the score's record, and more."""

    active_threshold: float
    epsilon: float
    delta: float
    thresholds: list[float]
    epsilons: list[float]
    information_images: int
    information_queries: int  # whose latents were looked up among these
    information_ceiling: float
    top_kept: list[Ablation]  # the top 0, 1, …, all layers
    layers: list[LayerReport]
    probes: Probes | None
    without_probes: str | None  # why there are none


def report_content(
    score: Score,
    interventions: dict[tuple[bool, ...], Intervention],
    aggregate: Aggregate | None,
    probes: Probes | str,
    names: Sequence[str],
) -> ReportContent:
    """Every figure of the report from what was measured.

    probes: or why there are none. names: of the layers.
    """
    whole = interventions[(True,) * len(score.collapse.layers)].nelbo
    ablations = {mask: _ablation(one, whole) for mask, one in interventions.items()}
    count = len(score.collapse.layers)
    return ReportContent(
        **dict(score.record),
        active_threshold=ACTIVE_THRESHOLD,
        epsilon=EPSILON,
        delta=DELTA,
        thresholds=THRESHOLDS,
        epsilons=EPSILONS,
        information_images=aggregate.images if aggregate else 0,
        information_queries=aggregate.queries if aggregate else 0,
        information_ceiling=aggregate.ceiling if aggregate else 0.0,
        top_kept=[
            ablations[mask].model_copy(update={"kept": sum(mask)})
            for mask in layer_masks(count)[: count + 1]
        ],
        layers=_layer_reports(score, ablations, aggregate, names),
        probes=None if isinstance(probes, str) else probes,
        without_probes=probes if isinstance(probes, str) else None,
    )


def _layer_reports(
    score: Score,
    ablations: dict[tuple[bool, ...], Ablation],
    aggregate: Aggregate | None,
    names: Sequence[str],
) -> list[LayerReport]:
    record, bound, layers = score.record, score.record.bound, score.collapse.layers
    per_unit, shares, reports = _unit_figures(layers), bound.kl_share, []
    for layer, units in enumerate(layers):
        reports.append(
            LayerReport(
                layer=layer,
                name=names[layer],
                context=record.context and layer == 0,
                shape=list(units.shape),
                units=bound.elements[layer],
                kl=bound.kl[layer],
                kl_se=bound.kl_se[layer],
                kl_bits=bound.kl[layer] / NATS_PER_BIT,
                kl_share=shares[layer],
                kl_cumulative_share=sum(shares[: layer + 1]),
                active=bound.active[layer],
                active_low=bound.active_low[layer],
                active_high=bound.active_high[layer],
                collapsed=bound.collapsed[layer],
                mixed=units.mixed(EPSILONS.index(EPSILON)),
                by_image=_ranked(score.collapse.kl[:, layer]),
                without=ablations[tuple(other != layer for other in range(len(layers)))],
                information=_of_layer(aggregate and aggregate.information, layer),
                information_added=_of_layer(aggregate and aggregate.added, layer),
                saturated=aggregate is not None and aggregate.saturated(layer),
                residual=_of_layer(aggregate and aggregate.residual, layer),
                histogram=aggregate and aggregate.histograms[layer],
                active_by_threshold=[units.active(threshold) for threshold in THRESHOLDS],
                collapsed_by_epsilon=[units.collapsed(index) for index in range(len(EPSILONS))],
                per_unit=per_unit[layer],
            )
        )
    return reports


def _ranked(kl: Tensor) -> RankedImages:
    """From every image's KL in a layer: (N,) nats."""
    order, shown = kl.argsort(stable=True).tolist(), min(RANKED, len(kl))
    return RankedImages(
        quantiles=kl.quantile(kl.new_tensor(KL_QUANTILES)).tolist(),
        negligible=(kl < NEGLIGIBLE_NATS).double().mean().item(),
        least=order[:shown],
        most=order[-shown:],
    )


def _ablation(intervention: Intervention, whole: Tensor) -> Ablation:
    """Means of an intervention; whole: the −ELBO of the whole model for every image, (N,) nats."""
    nelbo, nelbo_se = mean_and_error(intervention.nelbo)
    reconstruction, reconstruction_se = mean_and_error(intervention.reconstruction)
    lost, lost_se = mean_and_error(intervention.nelbo - whole)
    return Ablation(
        nelbo=nelbo,
        nelbo_se=nelbo_se,
        reconstruction=reconstruction,
        reconstruction_se=reconstruction_se,
        rate=nelbo - reconstruction,
        lost=lost,
        lost_se=lost_se,
    )


def _unit_figures(layers: Sequence[LatentUnits]) -> list[UnitFigures]:
    """Every layer's units."""
    kl = torch.cat([units.kl for units in layers])
    total = kl.sum().clamp(min=torch.finfo(kl.dtype).tiny)
    order = kl.argsort(descending=True, stable=True)
    cumulative = torch.empty_like(kl)
    cumulative[order] = kl[order].cumsum(0) / total
    sizes = [units.kl.numel() for units in layers]
    epsilon = EPSILONS.index(EPSILON)
    return [
        UnitFigures(
            kl=_six_digits(units.kl),
            kl_bits=_six_digits(units.kl / NATS_PER_BIT),
            kl_share=_six_digits(units.kl / total),
            kl_cumulative_share=_six_digits(above),
            mean=_six_digits(units.mean),
            variance=_six_digits(units.variance),
            variance_se=_six_digits(units.variance_se),
            quiet_share=_six_digits(units.share_below_epsilon[epsilon]),
        )
        for units, above in zip(layers, cumulative.split(sizes), strict=True)
    ]


def _six_digits(values: Tensor) -> list[float]:
    """Rounded, because there may be a hundred thousand units."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _of_layer(pairs: Sequence[tuple[float, float] | None] | None, layer: int) -> Estimate | None:
    """A layer's (mean, standard error), where there is one."""
    pair = pairs and pairs[layer]
    return Estimate(value=pair[0], se=pair[1]) if pair else None
