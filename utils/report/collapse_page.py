"""The collapse report's page: its sections, from the figures of report.json."""

from collections.abc import Mapping

from model.estimators import Estimator
from utils.evaluation.collapse import ACTIVE_THRESHOLD, DELTA, EPSILON, MIXED
from utils.evaluation.information import SATURATION
from utils.evaluation.metrics import Metrics
from utils.report.collapse_tables import (
    images_table,
    information_table,
    kept_table,
    unit_table,
    without_table,
)
from utils.report.content import NEGLIGIBLE_NATS, ReportContent
from utils.report.drawing import Drawing
from utils.report.glossary import GLOSSARY
from utils.report.page import Section
from utils.report.probes_section import probes_section
from utils.report.tables import ELBO, layer_table, score_table


def lead(content: ReportContent) -> list[str]:
    """The page's first paragraphs: what was evaluated, and how."""
    return [
        f"{content.bound.images:,} {content.split} images of {content.dataset} "
        f"({content.dims} dimensions); {content.protocol}.",
        f"Checkpoint: {content.checkpoint_name}; train.seed {content.seed}.",
        f"KL and active units are from {content.bound.posterior_samples} posterior samples per "
        "image. Every ± and every interval is 95 %, over images.",
    ]


def sections(
    content: ReportContent,
    drawings: Mapping[str, Drawing],
    metrics: Metrics,
    estimators: Mapping[str, Estimator],
) -> list[Section]:
    """The page's sections, in reading order; drawings by name.

    metrics: a user's own; estimators: those of the score.
    """
    described = {name: estimator.description for name, estimator in estimators.items()}
    return [
        Section("Verdict", points=[layer.verdict for layer in content.layers]),
        Section(
            "Likelihood",
            points=[f"{name}: {text}" for name, text in {"elbo": ELBO, **described}.items()],
            tables=[score_table(content)],
        ),
        _layers_section(content, drawings, metrics),
        _units_section(content, drawings),
        _ablation_section(content, drawings),
        _images_section(content, drawings),
        probes_section(content),
        *([_information_section(content, drawings)] if content.information_images else []),
        Section("Pictures", drawings=_pick(drawings, _PICTURES)),
        Section("Glossary", terms=GLOSSARY),
    ]


def _layers_section(
    content: ReportContent, drawings: Mapping[str, Drawing], metrics: Metrics
) -> Section:
    shapes = [layer.shape for layer in content.layers]
    captions = {
        "layers": "Dots: KL per image and share of active units, with intervals; hollow where the "
        "layer has collapsed."
    }
    return Section(
        "Layers",
        tables=[layer_table(content, metrics, shapes)],
        drawings=_pick(drawings, captions),
    )


def _units_section(content: ReportContent, drawings: Mapping[str, Drawing]) -> Section:
    captions = {
        "active_units": "Solid: the layer's units, with an interval; dashed: all units.",
        "collapsed_units": "Solid: the layer's units; dashed: all units.",
        "kl_maps": "Rows and columns count from 0. The positions of a DCT context are frequencies, "
        "the lowest at the upper left.",
    }
    return Section(
        "Units",
        paragraphs=[
            "A unit is one element of a latent. It is active where the mean of its posterior, "
            "the layers above marginalised, varies over the images by more than "
            f"{ACTIVE_THRESHOLD:g}; it is collapsed where its KL is under ε for at least "
            f"{1 - DELTA:.0%} of the images."
        ],
        drawings=_pick(drawings, captions),
        tables=[unit_table(content)],
    )


def _ablation_section(content: ReportContent, drawings: Mapping[str, Drawing]) -> Section:
    captions = {
        "interventions": "First: only the top layers kept. Second: one layer drawn from its prior.",
        "rate_distortion": "A number beside a point is how many layers are kept. Where a step goes "
        "right without going down, the layer costs nats and tells nothing of the image.",
    }
    return Section(
        "Layer ablation",
        paragraphs=[
            "Layers are drawn from their priors instead of inferred from the image. The posteriors "
            "of the layers below depend on that draw and may compensate for it. The reconstruction "
            "plus the KL of the layers kept (one sample per image) bounds −log p(x) in every row."
        ],
        tables=[kept_table(content), without_table(content)],
        drawings=_pick(drawings, captions),
    )


def _images_section(content: ReportContent, drawings: Mapping[str, Drawing]) -> Section:
    captions = {"images_by_kl": "Five of least KL and five of most; report.json has their indices."}
    return Section(
        "Images by KL",
        paragraphs=[
            "A layer may be active for some images and collapsed for others: its KL by image, and "
            f"the share of images with less than {NEGLIGIBLE_NATS:g} nats. A mixed unit's KL is "
            f"under {EPSILON:g} nats for some images, and over it for others, at least "
            f"{MIXED:.0%} of them each way."
        ],
        tables=[images_table(content)],
        drawings=_pick(drawings, captions),
    )


def _information_section(content: ReportContent, drawings: Mapping[str, Drawing]) -> Section:
    captions = {
        "information": "Of each layer and those above it together.",
        "aggregates": "Where filled bars leave the line, the prior gives values the wrong "
        "probability.",
    }
    return Section(
        "Information",
        paragraphs=[
            f"For x drawn from {content.information_images} images, the mutual information between "
            "x and the layers down to each one. It is at most log N = "
            f"{content.information_ceiling:.2f} nats; near that it says only that the images are "
            "identified. KL less information is the KL of the aggregate posterior from the prior. "
            f"One draw each of {content.information_queries:,} of these images.",
            f"Within {SATURATION:g} nats of log N the ceiling is reached: the layers may know more "
            "of an image than so few images can show.",
            "The residual is E[((z − μ)/σ)²] under the prior's μ and σ: 1 where the aggregate "
            "posterior has the prior's spread, more where the prior would seldom draw it.",
        ],
        tables=[information_table(content)],
        drawings=_pick(drawings, captions),
    )


_PICTURES = {
    "reconstructions": "",
    "reconstructions_top": "",
    "context": "",
    "diffusion": "",
    "samples": "A column is the same draw at every temperature.",
    "samples_fixed_top": "The variation that remains is what the lower layers add.",
    "traversals": "Layers above keep the image's values, layers below take their priors' means.",
}


def _pick(
    drawings: Mapping[str, Drawing], captions: Mapping[str, str]
) -> list[tuple[Drawing, str]]:
    """The drawings that exist, with their captions."""
    return [(drawings[name], caption) for name, caption in captions.items() if name in drawings]
