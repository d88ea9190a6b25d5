"""The collapse report's page: its sections and tables, from the figures of report.json."""

from collections.abc import Sequence

from model.objective import bits_per_dim
from utils.evaluation.collapse import ACTIVE_THRESHOLD, DELTA, EPSILON, Z_95
from utils.report.drawing import Drawing
from utils.report.page import Cell, Section, Table, number, share

LISTED_UNITS = 50  # of the table; the JSON has all
ESTIMATORS = {
    "elbo": "−log p(x | z) + KL with one sample per pass; an upper bound on −log p(x)",
    "iwae": "importance-weighted with K samples; in expectation an upper bound on −log p(x)",
    "published": "as the published code computes it, for its tables; not a bound",
}


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
                ("diffusion", "How its prior makes one from noise."),
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
