"""A comparison as tables on the terminal, and as a page with a JSON file of every figure."""

from collections.abc import Sequence
from pathlib import Path

from utils.evaluation.compare import Run, contents
from utils.files import write_json
from utils.report import plots
from utils.report.drawing import save
from utils.report.page import Cell, Section, Table, number, share, write_page
from utils.terminal import Terminal

INTERVALS = (
    "± over images: 95 %, paired over the same images, for these trained models. ± over seeds: "
    "95 % by Student's t, for training anew; it needs two seeds of each."
)


def write_comparison(runs: Sequence[Run], folder: Path, terminal: Terminal) -> Path:
    """compare.html, compare.json and comparison.png in the folder, and tables on the terminal."""
    content = contents(runs)
    show(content, terminal)
    groups = content["groups"]
    kl = {group["label"]: [mean for mean, _ in group["kl"]] for group in groups}
    curves = {group["label"]: group["active_by_threshold"] for group in groups}
    drawing = plots.draw_comparison(kl, curves)
    save(drawing, folder)
    write_json(folder / "compare.json", content)
    sections = [
        Section("Means over seeds", tables=[means_table(content), layers_table(content)]),
        *(
            Section(
                f"{found['label']} less {content['base']}",
                paragraphs=[INTERVALS],
                tables=[differences_table(found, content["base"])],
            )
            for found in content["differences"]
        ),
        Section("Layers and units", drawings=[(drawing, "Means over seeds.")]),
        Section("Runs", tables=[runs_table(content)]),
    ]
    lead = [
        f"{content['images']:,} {content['split']} images of {content['dataset']}; "
        + "; ".join(content["protocol"])
        + ".",
        "iwae and −elbo bound −log p(x) from above, with K samples per image and so many diffusion "
        "paths behind a context's own weight; published is what the published code computes, and "
        "no bound.",
    ]
    title = " and ".join(kl) if len(kl) < 4 else f"{len(kl)} models"
    page = write_page(folder / "compare.html", f"{title}, side by side", lead, sections)
    terminal.line(f"The comparison is {page}")
    return page


def show(content: dict, terminal: Terminal) -> None:
    """Means, layers and differences."""
    tables = [means_table(content), layers_table(content)]
    tables += [differences_table(found, content["base"]) for found in content["differences"]]
    for table in tables:
        terminal.table(
            table.caption,
            [name for name, _ in table.header],
            [[cell.text for cell in row] for row in table.rows],
        )
    terminal.line(INTERVALS)


def means_table(content: dict) -> Table:
    """A row per measure, a column per group."""
    groups = content["groups"]
    rows = []
    for index, measure in enumerate(groups[0]["measures"]):
        row = [Cell(measure["measure"]), Cell(measure["unit"])]
        for group in groups:
            found = group["measures"][index]
            row.append(_with_sd(found["mean"], found["sd"], _digits(measure["unit"])))
        rows.append(row)
    seeds = {len(group["seeds"]) for group in groups}
    count = f"{seeds.pop()} seed(s) each" if len(seeds) == 1 else "several seeds"
    return Table(
        f"Mean ± standard deviation over {count}; {content['images']:,} {content['split']} images",
        [("measure", ""), ("unit", ""), *((group["label"], "") for group in groups)],
        rows,
    )


def layers_table(content: dict) -> Table:
    """KL and active units per layer, a row per layer, two columns per group."""
    groups = content["groups"]
    rows = []
    for layer in range(max(len(group["kl"]) for group in groups)):
        row = [Cell(str(layer), layer)]
        for group in groups:
            if layer < len(group["kl"]):
                active, _ = group["active"][layer]
                row += [_with_sd(*group["kl"][layer], 2), share(active)]
            else:
                row += [Cell("", -1), Cell("", -1)]
        rows.append(row)
    header = [("layer", "0 is the top, the context where there is one")]
    for group in groups:
        header.append((f"KL {group['label']}", "nats, mean ± sd over seeds"))
        header.append(("active", "share of the layer's units, mean over seeds"))
    return Table("KL per layer (nats) and active units, from the top", header, rows)


def differences_table(found: dict, base: str) -> Table:
    """A row per measure."""
    return Table(
        f"{found['label']} less {base}",
        [
            ("measure", ""),
            ("unit", ""),
            ("difference", "of the means"),
            ("± over images", "95 %, paired over the same images"),
            ("± over seeds", "95 %, Student's t"),
        ],
        [
            [
                Cell(row["measure"]),
                Cell(row["unit"]),
                Cell(f"{row['mean']:+.{_digits(row['unit'])}f}", row["mean"]),
                _maybe(row["over_images"], _digits(row["unit"])),
                _maybe(row["over_seeds"], _digits(row["unit"])),
            ]
            for row in found["measures"]
        ],
    )


def runs_table(content: dict) -> Table:
    """Every run's own figures."""
    rows = []
    for group in content["groups"]:
        for run in group["runs"]:
            low, high = run["active_units_interval"]
            row = [Cell(group["label"]), number(run["seed"], 0)]
            for entry in run["likelihoods"]:
                row.append(Cell(f"{entry['nll']:.2f} ± {entry['nll_se']:.2f}", entry["nll"]))
            row += [
                Cell(f"{run['nelbo']:.2f} ± {run['nelbo_se']:.2f}", run["nelbo"]),
                number(sum(run["kl"])),
                Cell(f"{run['active_units']:.1%} ({low:.1%} – {high:.1%})", run["active_units"]),
                Cell(", ".join(f"{kl:.2f}" for kl in run["kl"])),
                Cell(run["checkpoint"]),
            ]
            rows.append(row)
    likelihoods = content["groups"][0]["runs"][0]["likelihoods"]
    return Table(
        "Each run (nats; ± standard error over images)",
        [
            ("group", ""),
            ("seed", "train.seed"),
            *((f"{e['estimator']}, K = {e['num_samples']}", "") for e in likelihoods),
            ("−elbo", "reconstruction + KL"),
            ("KL", "all layers"),
            ("active units", "with a conservative 95 % interval"),
            ("KL per layer", "from the top"),
            ("checkpoint", ""),
        ],
        rows,
    )


def _digits(unit: str) -> int:
    return {"bits/dim": 4, "%": 1}.get(unit, 2)


def _with_sd(mean: float, sd: float | None, digits: int) -> Cell:
    spread = "" if sd is None else f" ± {sd:.{digits}f}"
    return Cell(f"{mean:.{digits}f}{spread}", mean)


def _maybe(value: float | None, digits: int) -> Cell:
    return Cell("–", -1) if value is None else Cell(f"{value:.{digits}f}", value)
