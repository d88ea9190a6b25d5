"""A comparison: tables on the terminal, a page, and a JSON file of every figure."""

from collections.abc import Sequence
from pathlib import Path

from utils.evaluation.compare import Comparison, compare
from utils.evaluation.compared_runs import Run
from utils.files import write_json
from utils.report.comparison_plots import draw_comparison
from utils.report.comparison_tables import (
    differences_table,
    key_table,
    layers_table,
    means_table,
    runs_table,
)
from utils.report.drawing import Drawing, save
from utils.report.glossary import GLOSSARY
from utils.report.page import Section, write_page
from utils.terminal import Terminal

INTERVALS = (
    "± over images: 95 %, paired over the same images, for these trained models; of active units, "
    "the sum of what either model's own interval leaves open. ± over seeds: 95 % by Student's t, "
    "for training anew; it needs two seeds of each."
)


def write_comparison(runs: Sequence[Run], folder: Path, terminal: Terminal) -> Path:
    """Write compare.html, compare.json and comparison.png, and print tables on the terminal.

    Returns the path of the page.

    Raises:
        ConfigError: if the runs cannot be compared.
    """
    comparison = compare(runs)
    try:
        page = _write(comparison, folder)
    finally:  # on a full disk too
        show(comparison, terminal)
    terminal.line(f"The comparison is {page}")
    return page


def _write(comparison: Comparison, folder: Path) -> Path:
    """The page, and the files beside it; returns the page."""
    drawing = draw_comparison(comparison.groups)
    save(drawing, folder)
    write_json(folder / "compare.json", comparison.model_dump())
    return write_page(
        folder / "compare.html", title(comparison), lead(comparison), sections(comparison, drawing)
    )


def show(comparison: Comparison, terminal: Terminal) -> None:
    """Print what the letters stand for, the means, layers and differences."""
    for line in key(comparison):
        terminal.line(line)
    terminal.table(means_table(comparison))
    terminal.table(layers_table(comparison))
    for difference in comparison.differences:
        terminal.table(differences_table(difference))
    terminal.line(INTERVALS)


def title(comparison: Comparison) -> str:
    """The page's title."""
    names = list(dict.fromkeys(group.runs[0].name for group in comparison.groups))
    several = len(comparison.groups) > len(names) or len(names) > 3
    if several:
        return f"{len(comparison.groups)} models side by side"
    return f"{' and '.join(names)}, side by side"


def key(comparison: Comparison) -> list[str]:
    """What each letter stands for."""
    return [f"{group.letter}: {group.label}" for group in comparison.groups]


def lead(comparison: Comparison) -> list[str]:
    """The page's first paragraphs: the images, and the estimators."""
    return [
        f"{comparison.images:,} {comparison.split} images of {comparison.dataset}; "
        f"{'; '.join(comparison.protocol)}.",
        "iwae and −elbo are upper bounds on −log p(x), with K samples per image and, for a "
        "context's own weight, the diffusion paths named; published is what the published code "
        "computes and not a bound.",
        "Every ± is 95 %; figures in brackets are standard deviations over seeds.",
    ]


def sections(comparison: Comparison, drawing: Drawing) -> list[Section]:
    """The page's sections, in reading order."""
    differences = [
        Section(
            f"{difference.letter} less A",
            paragraphs=[INTERVALS],
            tables=[differences_table(difference)],
        )
        for difference in comparison.differences
    ]
    return [
        Section("Models", tables=[key_table(comparison)]),
        Section("Means over seeds", tables=[means_table(comparison), layers_table(comparison)]),
        *differences,
        Section("Layers and units", drawings=[(drawing, "")]),
        Section(
            "Runs",
            tables=[runs_table(comparison)],
            points=[
                f"{group.letter}, seed {run.seed}: {run.checkpoint_name}"
                for group in comparison.groups
                for run in group.runs
            ],
        ),
        Section("Glossary", terms=GLOSSARY),
    ]
