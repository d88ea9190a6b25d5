"""The collapse report: what each latent layer carries, as a page, its drawings and a JSON file.

report/report.html   report/report.json (every figure of the page)   report/*.png
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from model.objective import bits_per_dim
from utils import figures, plots
from utils.collapse import (
    ACTIVE_THRESHOLD,
    DELTA,
    EPSILON,
    EPSILONS,
    THRESHOLDS,
    Z_95,
    Units,
    mean_and_error,
)
from utils.distributed import Processes
from utils.drawing import Drawing, save
from utils.files import write_json
from utils.information import (
    Aggregate,
    Intervention,
    aggregate_posterior,
    interventions,
    plans,
)
from utils.page import Cell, Section, Table, number, share, write_page
from utils.results import PICTURED, Score
from utils.terminal import Terminal

NATS_PER_BIT = math.log(2.0)
LISTED_UNITS = 50  # of the page's table; the JSON has all
FEW = 0.1  # share of active units under which a layer has mostly collapsed
LITTLE = 0.02  # share of the KL
SEEN = 0.005  # nats that two decimals show
COST = 0.1  # nats without which an inactive layer's KL is not worth a word

ESTIMATORS = {
    "elbo": "−log p(x | z) + KL with one sample per pass; an upper bound on −log p(x)",
    "iwae": "importance-weighted with K samples; in expectation an upper bound on −log p(x)",
    "published": "as the published code computes it, for its tables; not a bound",
}


def write_report(
    model: LadderVAE,
    score: Score,
    settings: dict,
    batches: EvaluationBatches,
    folder: Path,
    processes: Processes,
    terminal: Terminal,
) -> list[Path]:
    """Measure what `score` has not, and write the report; the PNG files' paths.

    Call it on every process; the main one writes.
    """
    seed, split = settings["train"]["seed"], score.record["split"]
    with terminal.bar(f"{split}: without each layer", len(batches.ids)) as bar:
        found = interventions(model, batches, seed, bar.count)
    if not processes.is_main:
        return []
    some = batches.first(settings["task"]["mi_images"])
    with terminal.bar(f"{split}: information", len(some)) as bar:
        aggregate = aggregate_posterior(model, some, seed, bar.count)
    content = contents(score, found, aggregate)
    drawings = draw(model, score, content, aggregate, batches.first(PICTURED), seed)
    pictures = [save(drawing, folder) for drawing in drawings.values()]
    write_json(folder / "report.json", content)
    page = write_page(
        folder / "report.html",
        f"{content['name']}: what each layer carries",
        lead(content),
        sections(content, drawings),
    )
    terminal.line(f"The collapse report is {page}")
    return pictures


# Figures


def contents(
    score: Score, found: dict[tuple[bool, ...], Intervention], aggregate: Aggregate
) -> dict:
    """Every figure of the report, as plain containers."""
    record, bound = score.record, score.record["bound"]
    layers = score.collapse.layers
    whole = found[(True,) * len(layers)].nelbo
    per_unit = _per_unit(layers)
    top = [_kept(found[plan], whole) for plan in plans(len(layers))[: len(layers) + 1]]
    rows, cumulative = [], 0.0
    for layer, units in enumerate(layers):
        kl = bound["kl"][layer]
        cumulative += kl
        row = {
            "layer": layer,
            "context": record["context"] and layer == 0,
            "shape": list(units.shape),
            "units": bound["elements"][layer],
            "kl": kl,
            "kl_se": bound["kl_se"][layer],
            "kl_bits": kl / NATS_PER_BIT,
            "kl_share": kl / sum(bound["kl"]) if sum(bound["kl"]) else 0.0,
            "kl_cumulative_share": cumulative / sum(bound["kl"]) if sum(bound["kl"]) else 0.0,
            "active": bound["active"][layer],
            "active_low": bound["active_low"][layer],
            "active_high": bound["active_high"][layer],
            "collapsed": bound["collapsed"][layer],
            "without": _without(found, whole, layer),
            "information": _pair(aggregate.information[layer]),
            "information_added": _pair(aggregate.added[layer]),
            "saturated": aggregate.saturated(layer),
            "residual": aggregate.residual[layer] and _pair(aggregate.residual[layer]),
            "histogram": vars(aggregate.histograms[layer]),
            "active_by_threshold": [list(units.active(t)) for t in THRESHOLDS],
            "collapsed_by_epsilon": [units.collapsed(i) for i in range(len(EPSILONS))],
            "per_unit": per_unit[layer],
        }
        rows.append({**row, "verdict": verdict(row)})
    return {
        **record,
        "active_threshold": ACTIVE_THRESHOLD,
        "epsilon": EPSILON,
        "delta": DELTA,
        "thresholds": list(THRESHOLDS),
        "epsilons": list(EPSILONS),
        "information_images": aggregate.images,
        "information_ceiling": aggregate.ceiling,
        "top_kept": top,
        "layers": rows,
    }


def _kept(one: Intervention, whole: Tensor) -> dict:
    """The bound with the top layers kept, and what it loses."""
    lost, error = mean_and_error(one.nelbo - whole)
    nelbo, nelbo_se = mean_and_error(one.nelbo)
    reconstruction, reconstruction_se = mean_and_error(one.reconstruction)
    return {
        "kept": sum(one.kept),
        "nelbo": nelbo,
        "nelbo_se": nelbo_se,
        "reconstruction": reconstruction,
        "reconstruction_se": reconstruction_se,
        "lost": lost,
        "lost_se": error,
    }


def _without(found: dict[tuple[bool, ...], Intervention], whole: Tensor, layer: int) -> dict:
    """What the bound loses without one layer, paired over the images."""
    count = len(next(iter(found)))
    row = _kept(found[tuple(other != layer for other in range(count))], whole)
    return {key: value for key, value in row.items() if key != "kept"}


def _per_unit(layers: Sequence[Units]) -> list[dict[str, list[float]]]:
    """Each layer's units, in the order of (w, h, h) flattened.

    The cumulative share is of the unit and of all units, of any layer, whose KL is larger.
    """
    kl = torch.cat([units.kl for units in layers])
    whole = kl.sum().clamp(min=torch.finfo(kl.dtype).tiny)
    order = kl.argsort(descending=True, stable=True)
    cumulative = torch.empty_like(kl)
    cumulative[order] = kl[order].cumsum(0) / whole
    sizes = [units.kl.numel() for units in layers]
    quiet = EPSILONS.index(EPSILON)
    return [
        {
            "kl": _short(units.kl),
            "kl_bits": _short(units.kl / NATS_PER_BIT),
            "kl_share": _short(units.kl / whole),
            "kl_cumulative_share": _short(above),
            "mean": _short(units.mean),
            "variance": _short(units.variance),
            "variance_se": _short(units.variance_se),
            "quiet_share": _short(units.quiet[quiet]),
        }
        for units, above in zip(layers, cumulative.split(sizes), strict=True)
    ]


def _short(values: Tensor) -> list[float]:
    """To six digits: there may be a hundred thousand units."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _pair(found: tuple[float, float]) -> dict:
    return {"value": found[0], "se": found[1]}


def verdict(row: dict) -> str:
    """One sentence on a layer."""
    name = "The context" if row["context"] else f"Layer {row['layer']}"
    units, active, kl = row["units"], row["active"], row["kl"]
    counted = f"{kl:.2f} nats, {active:,} of {units:,} units active"
    if active == 0 and kl < max(COST, units * EPSILON):
        said = f"{name} has collapsed: {counted}"
    elif active == 0:
        said = f"{name} costs {kl:.2f} nats yet has none of its {units:,} units active"
    elif active < FEW * units:
        said = f"{name} has mostly collapsed: {counted}"
    else:
        use = "carries little" if row["kl_share"] < LITTLE else "is in use"
        said = f"{name} {use}: {counted}, {row['kl_share']:.1%} of the KL"
    lost, error = row["without"]["lost"], Z_95 * row["without"]["lost_se"]
    if abs(lost) <= max(error, SEEN):
        return f"{said}; without it the bound is the same (by {lost:+.2f} ± {error:.2f} nats)."
    change = "worse" if lost > 0 else "better"
    return f"{said}; without it the bound is {abs(lost):.2f} ± {error:.2f} nats {change}."


# Drawings


def draw(
    model: LadderVAE, score: Score, content: dict, aggregate: Aggregate, x: Tensor, seed: int
) -> dict[str, Drawing]:
    """All drawings by name; x (B, C, H, W): the images of the pictures."""
    rows, layers = content["layers"], score.collapse.layers
    shares = [
        [row[key] / row["units"] for key in ("active", "active_low", "active_high")] for row in rows
    ]
    lost = [
        {
            "layer": row["layer"],
            "lost": row["without"]["lost"],
            "lost_interval": Z_95 * row["without"]["lost_se"],
        }
        for row in rows
    ]
    kl = [row["kl"] for row in rows]
    drawings = [
        plots.draw_layers(kl, [Z_95 * row["kl_se"] for row in rows], shares),
        plots.draw_active_curve(layers),
        plots.draw_collapse_curve(layers),
        plots.draw_kl_maps(layers, content["context"]),
        plots.draw_interventions(content["top_kept"], lost),
        plots.draw_information(aggregate, kl),
        plots.draw_aggregates(aggregate),
        *figures.draw_model(model, x, seed),
        figures.draw_traversals(model, x, layers),
    ]
    return {drawing.name: drawing for drawing in drawings if drawing}


# The page


def lead(content: dict) -> list[str]:
    """What was evaluated, and how."""
    bound = content["bound"]
    return [
        f"{bound['images']:,} {content['split']} images of {content['dataset']} "
        f"({content['dims']} dimensions); {content['protocol']}.",
        f"Checkpoint: {content['checkpoint']}; seed {content['seed']}.",
        f"KL and active units from {bound['passes']} posterior passes per image; intervals are "
        "95 %, over images.",
    ]


def sections(content: dict, drawings: dict[str, Drawing]) -> list[Section]:
    """The page's sections, in reading order."""

    def pick(*wanted: tuple[str, str]) -> list[tuple[Drawing, str]]:
        return [(drawings[name], caption) for name, caption in wanted if name in drawings]

    return [
        Section("Verdict", points=[row["verdict"] for row in content["layers"]]),
        Section(
            "Likelihood",
            points=[f"{name}: {text}" for name, text in ESTIMATORS.items()],
            tables=[score_table(content)],
        ),
        Section(
            "Layers",
            tables=[layer_table(content)],
            drawings=pick(("layers", "KL per image, and share of units that are active.")),
        ),
        Section(
            "Units",
            paragraphs=[
                "A unit is one element of a latent. It is active where the mean of its posterior, "
                "the layers above marginalised, varies over the images by more than "
                f"{ACTIVE_THRESHOLD:g}; it is collapsed where its KL is under ε for at least "
                f"{1 - DELTA:.0%} of the images."
            ],
            drawings=pick(
                ("active_units", "How many units are active, for every threshold."),
                ("collapsed_units", "How many units are collapsed, for every ε."),
                (
                    "kl_maps",
                    "Where the KL is spent. A DCT context's positions are frequencies, lowest at "
                    "the upper left.",
                ),
            ),
            tables=[unit_table(content)],
        ),
        Section(
            "Without a layer",
            paragraphs=[
                "Layers are drawn from their priors instead of inferred from the image. Posteriors "
                "below see what was drawn and may make up for it. The reconstruction plus the KL "
                "of the layers kept (one sample per image) bounds −log p(x) in every row."
            ],
            tables=[kept_table(content), without_table(content)],
            drawings=pick(
                ("interventions", "Left: only the top layers kept. Right: one layer replaced.")
            ),
        ),
        Section(
            "Information",
            paragraphs=[
                f"With x one of {content['information_images']} images, the information that the "
                "layers down to each one hold about which one it is; it is log N = "
                f"{content['information_ceiling']:.2f} nats at most, and near that it says only "
                "that the images are told apart. KL less information is the distance of the "
                "aggregate posterior from the prior.",
                "The residual is E[((z − μ)/σ)²] under the prior's μ and σ: 1 where the aggregate "
                "posterior has the prior's spread, more where the prior would seldom draw it.",
            ],
            tables=[information_table(content)],
            drawings=pick(
                ("information", "Cumulative, from the top; bars are 95 % intervals."),
                ("aggregates", "A bar far from the line is a value the prior gets wrong."),
            ),
        ),
        Section(
            "Pictures",
            drawings=pick(
                ("reconstructions", "What the posterior keeps of the image."),
                ("reconstructions_top", "The rows add layers from the top."),
                ("context", "The context in image space, beside the image."),
                ("samples", "The mean of p(x | z) for latents from the prior."),
                ("samples_fixed_top", "What the layers left free still decide."),
                ("traversals", "The most active units, a row each, moved through their range."),
            ),
        ),
    ]


def score_table(content: dict) -> Table:
    """Bound and likelihoods, the estimator beside each."""
    bound = content["bound"]
    rows = [("elbo", 1, None, None, bound["nelbo"], bound["nelbo_se"])]
    for entry in content["likelihoods"]:
        keys = ("estimator", "num_samples", "prior_samples", "ess", "nll", "nll_se")
        rows.append(tuple(entry[key] for key in keys))
    return Table(
        f"−log p(x) over {bound['images']:,} images; {content['protocol']}",
        [
            ("estimator", "how −log p(x) was estimated"),
            ("K", "importance samples per image"),
            ("prior paths", "diffusion paths per image behind the prior's own weight"),
            ("ESS", "effective number of the K weights, mean over images"),
            ("nats", "mean over images"),
            ("±", "standard error over images"),
            ("bits/dim", "nats / (dimensions · ln 2)"),
        ],
        [
            [
                Cell(name),
                number(samples, 0),
                number(paths, 0) if paths else Cell("–", 0),
                number(ess, 1) if ess else Cell("–", 0),
                number(nll),
                number(error),
                number(bits_per_dim(nll, content["dims"]), 4),
            ]
            for name, samples, paths, ess, nll, error in rows
        ],
    )


def layer_table(content: dict) -> Table:
    """A row per layer."""
    return Table(
        f"Layers from the top; active over {ACTIVE_THRESHOLD:g}, collapsed with ε = {EPSILON:g} "
        f"nats and δ = {DELTA:g}",
        [
            ("layer", "0 is the top"),
            ("shape", "channels × height × width"),
            ("KL (nats)", "mean over images"),
            ("±", "standard error over images"),
            ("KL (bits)", "nats / ln 2"),
            ("bits/unit", "KL per latent element"),
            ("share", "of the whole KL"),
            ("cumulative", "share of this layer and those above"),
            ("active", "units whose marginal posterior mean varies over the images"),
            ("interval", "units certainly and possibly active, by each unit's 95 % interval"),
            ("collapsed", "(ε, δ)-collapsed units"),
        ],
        [
            [
                _layer_cell(row),
                Cell(" × ".join(map(str, row["shape"])), row["units"]),
                number(row["kl"], 3),
                number(row["kl_se"], 3),
                number(row["kl_bits"], 3),
                number(row["kl_bits"] / row["units"], 4),
                share(row["kl_share"]),
                share(row["kl_cumulative_share"]),
                Cell(f"{row['active']:,} of {row['units']:,}", row["active"] / row["units"]),
                Cell(f"{row['active_low']:,} – {row['active_high']:,}", row["active_low"]),
                Cell(f"{row['collapsed']:,} of {row['units']:,}", row["collapsed"] / row["units"]),
            ]
            for row in content["layers"]
        ],
    )


def unit_table(content: dict) -> Table:
    """The units of largest KL."""
    units = [
        (row["per_unit"]["kl"][unit], row, unit)
        for row in content["layers"]
        for unit in range(row["units"])
    ]
    units.sort(key=lambda each: -each[0])
    rows = []
    for _, row, unit in units[:LISTED_UNITS]:
        _, height, width = row["shape"]
        channel, place = divmod(unit, height * width)
        own = {name: values[unit] for name, values in row["per_unit"].items()}
        rows.append(
            [
                _layer_cell(row),
                Cell(f"{channel}, {place // width}, {place % width}", unit),
                number(own["kl"], 3),
                number(own["kl_bits"], 3),
                share(own["kl_share"]),
                share(own["kl_cumulative_share"]),
                number(own["variance"], 3),
                number(own["variance_se"], 3),
                share(own["quiet_share"]),
            ]
        )
    return Table(
        f"The {len(rows)} units of largest KL, of {len(units):,}; report.json has them all",
        [
            ("layer", "0 is the top"),
            ("unit", "channel, row, column"),
            ("KL (nats)", "mean over images"),
            ("KL (bits)", "nats / ln 2"),
            ("share", "of the whole KL"),
            ("cumulative", "share of this unit and those of larger KL"),
            ("variance", "Var over x of E[z | x]"),
            ("±", "its standard error over images"),
            (f"KL under {EPSILON:g}", "share of images"),
        ],
        rows,
        folded=True,
    )


def kept_table(content: dict) -> Table:
    """Only the top layers kept."""
    return Table(
        "The top k layers from the posterior, the rest from the prior (nats per image)",
        [("k", "layers kept"), *_LOSS_HEADER],
        [[number(row["kept"], 0), *_loss_cells(row)] for row in content["top_kept"]],
    )


def without_table(content: dict) -> Table:
    """One layer replaced."""
    return Table(
        "One layer from its prior, the others from their posteriors (nats per image)",
        [("layer", "the one replaced"), *_LOSS_HEADER],
        [[_layer_cell(row), *_loss_cells(row["without"])] for row in content["layers"]],
    )


_LOSS_HEADER = [
    ("reconstruction", "−log p(x | z)"),
    ("−ELBO", "reconstruction + KL of the layers kept"),
    ("lost", "−ELBO less that of the whole model, paired over images"),
    ("± (95 %)", "interval of what is lost, over images"),
]


def _loss_cells(row: dict) -> list[Cell]:
    values = (row["reconstruction"], row["nelbo"], row["lost"], Z_95 * row["lost_se"])
    return [number(value) for value in values]


def information_table(content: dict) -> Table:
    """Mutual information and residuals."""
    return Table(
        f"Information from {content['information_images']} images (nats)",
        [
            ("layer", "0 is the top"),
            ("I(x; z top … l)", "this layer and those above"),
            ("±", "standard error"),
            ("added", "by this layer, given those above"),
            ("± ", "standard error"),
            ("KL, cumulative", "of this layer and those above, over all images"),
            ("ceiling", "whether log N is reached"),
            ("residual", "mean squared standardised latent"),
            ("±  ", "standard error"),
        ],
        _information_rows(content["layers"]),
    )


def _information_rows(layers: Sequence[dict]) -> list[list[Cell]]:
    rows, cumulative = [], 0.0
    for row in layers:
        cumulative += row["kl"]
        residual = row["residual"]
        rows.append(
            [
                _layer_cell(row),
                number(row["information"]["value"], 3),
                number(row["information"]["se"], 3),
                number(row["information_added"]["value"], 3),
                number(row["information_added"]["se"], 3),
                number(cumulative, 3),
                Cell("reached" if row["saturated"] else "–", float(row["saturated"])),
                number(residual["value"], 3) if residual else Cell("–", 0),
                number(residual["se"], 3) if residual else Cell("–", 0),
            ]
        )
    return rows


def _layer_cell(row: dict) -> Cell:
    return Cell(f"{row['layer']}{' (context)' if row['context'] else ''}", row["layer"])
