"""The page of the collapse matrix: verdicts, tables, three figures, settings, what is missing.

python -m utils.report.matrix_page FOLDER/matrix.json    writes the page beside the file again
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from utils.errors import ConfigError, exit_status
from utils.files import read_json, write_json
from utils.report.drawing import Drawing, save
from utils.report.matrix import LEVEL, NOT_RESOLVED, Matrix
from utils.report.matrix_cells import ESTIMATOR
from utils.report.matrix_plots import draw_heat_maps, draw_kl_curves, draw_trade
from utils.report.matrix_tables import (
    differences_tables,
    figures_tables,
    label_list,
    runs_table,
    settings_table,
    verdict_table,
)
from utils.report.page import Section, write_page
from utils.terminal import Terminal

QUESTIONS = [
    "Rate: does a latent cost nats? KL(q ‖ p) is what the bound pays for it.",
    "Information: does it depend on the image? I(x; z) in nats, and active units: the share of its "
    "elements whose posterior mean varies with the image.",
    "Use: is the bound worse when the latent is drawn from its prior instead? It is in use where "
    "that costs more than the 95 % error over images.",
]
RULE = [
    "helps: a larger share of latents in use, or more information in the top one, and −log p(x) "
    "not worse.",
    "trades: the same, and −log p(x) worse.",
    "pads: a higher KL, but neither a larger share in use nor more information in the top one.",
    "worse: −log p(x) worse, and none of these.",
    "not resolved: everything else. It does not say that there is no effect.",
]
TESTS = (
    f"More, higher and worse are what a paired t-test over seeds resolves at {LEVEL:.0%}, after "
    "Holm's correction of each measure over the arms. Between helps and trades −log p(x)'s own "
    "95 % interval decides, uncorrected, because a correction would let harm pass as “not worse”. "
    "Latents in use are a share, since a context is one latent more; where all "
    "seeds differ by the same count, the spread is taken to be that of rounding, not 0. How much "
    "those in use are worth, the column beside it and the heat map say."
)
WIDTHS = (
    "Over seeds: Student's t of the differences of equal seeds; it says what training anew would "
    "give. Over images: of the images' own differences, averaged over seeds; it holds for these "
    "trained models only. Neither is corrected for the number of arms; the mark • is."
)


def write_matrix(matrix: Matrix, folder: Path, terminal: Terminal) -> Path:
    """Write matrix.html, matrix.json and the PNG files, and print the verdicts.

    Returns the page's path.
    """
    terminal.table(verdict_table(matrix))
    terminal.line(resolved_sentence(matrix))
    write_json(folder / "matrix.json", matrix.model_dump())
    for drawing in draw(matrix):
        save(drawing, folder)
    page = write_matrix_page(matrix, folder / "matrix.html")
    for line in missing_lines(matrix):
        terminal.line(f"Missing: {line}")
    terminal.line(f"The matrix is {page}")
    return page


def read_matrix(path: Path) -> Matrix:
    """The matrix in a file.

    Raises:
        ConfigError: if it holds something else.
    """
    try:
        return Matrix.model_validate(read_json(path, "make it again by task=matrix"))
    except ValidationError as error:
        raise ConfigError(f"{path} holds no matrix: make it again by task=matrix.") from error


def draw(matrix: Matrix) -> list[Drawing]:
    """The three figures."""
    return [draw_heat_maps(matrix), draw_trade(matrix), draw_kl_curves(matrix)]


def write_matrix_page(matrix: Matrix, path: Path) -> Path:
    """Write the page of a matrix."""
    title = f"Remedies against posterior collapse: {matrix.name}"
    return write_page(path, title, lead(matrix), sections(matrix, draw(matrix)))


def lead(matrix: Matrix) -> list[str]:
    """The page's first paragraphs: what was compared, and what of it is resolved."""
    seeds = sorted({cell.seed for cell in matrix.cells})
    count = len(matrix.cells)
    lines = [
        "The latents of a hierarchical VAE can collapse: they follow their priors, and carry "
        f"nothing of the image. Each arm below is {matrix.name} with one remedy or several, "
        f"trained {matrix.epochs:,} epochs from the same seeds, on the same images in the same "
        "order, with the same noise; nothing is tuned for an arm.",
        f"{matrix.images:,} {matrix.split} images of {matrix.dataset} ({matrix.protocol}); "
        f"{len(matrix.arms)} arms, {count} runs, seeds {label_list([*map(str, seeds)])}. "
        f"−log p(x) by {ESTIMATOR}, K = {matrix.num_samples}; it and −ELBO are bounds of "
        "each arm's own model, without the penalties, weights and floors of its training.",
        resolved_sentence(matrix),
    ]
    if matrix.missing:
        lines.append(f"{len(matrix.missing)} more runs are missing; the end of the page says why.")
    if len(matrix.versions) > 1:
        lines.append(
            "Careful: the runs were made by several versions of the code "
            f"({', '.join(matrix.versions)})."
        )
    return lines


def resolved_sentence(matrix: Matrix) -> str:
    """Which arms have a verdict, in one sentence."""
    base, *others = matrix.arms
    if not others:
        return f"Only {base.label} is there, with {len(base.seeds)} seed(s)."
    by_verdict: dict[str, list[str]] = {}
    for arm in others:
        by_verdict.setdefault(arm.verdict, []).append(arm.label)
    unresolved = by_verdict.pop(NOT_RESOLVED, [])
    told = "; ".join(f"{name}: {label_list(labels)}" for name, labels in by_verdict.items())
    counts = sorted({len(arm.seeds) for arm in matrix.arms})
    seeds = " to ".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])
    rest = f"{len(unresolved)} of {len(others)} arms are not resolved" if unresolved else ""
    return (
        f"Against {base.label}, with {seeds} seed(s) an arm: "
        + "; ".join(filter(None, [told, rest])).rstrip()
        + "."
    )


def missing_lines(matrix: Matrix) -> list[str]:
    """Which runs are missing and why, a line for each reason and seed."""
    lines: dict[tuple[str, str], list[str]] = {}
    for name, reason in matrix.missing.items():
        label, _, seed = name.rpartition(", seed ")
        lines.setdefault((seed, reason), []).append(label)
    return [f"seed {seed}, {label_list(own)}: {why}" for (seed, why), own in lines.items()]


def sections(matrix: Matrix, drawings: Sequence[Drawing]) -> list[Section]:
    """The page's sections, in reading order."""
    heat, trade, curves = drawings
    base = matrix.arms[0].label
    missing = missing_lines(matrix)
    return [
        Section(
            "Verdicts",
            ["Three questions are kept apart, since a remedy may answer one and not the others:"],
            QUESTIONS,
            [verdict_table(matrix)],
        ),
        Section("How the verdicts are read", [TESTS, "The rule, fixed before the results:"], RULE),
        Section("Figures of each arm", [_figures_note(matrix)], tables=figures_tables(matrix)),
        Section(f"Differences from {base}", [WIDTHS], tables=differences_tables(matrix)),
        Section(
            "Latents by arm",
            drawings=[
                (
                    heat,
                    "A column for each seed, a row for each latent. The ladder's latents are "
                    "numbered from the top; a context, where an arm has one, is above them.",
                )
            ],
        ),
        Section(
            "Likelihood against information",
            drawings=[
                (
                    trade,
                    f"A dot for each seed, a cross of ± one standard deviation over seeds for each "
                    f"arm; the dotted lines run through {base}'s mean. To the right is more "
                    "information in the top latent, upwards a better likelihood.",
                )
            ],
        ),
        Section(
            "KL over training",
            drawings=[
                (curves, "KL of each latent on the validation set, the mean over an arm's seeds.")
            ],
        ),
        Section(
            "Settings and costs",
            [f"In brackets: relative to {base}. Seconds depend on what else the machine did."],
            tables=[settings_table(matrix)],
        ),
        Section("Runs", tables=[runs_table(matrix)]),
        *([Section("Missing runs", points=missing)] if missing else []),
    ]


def _figures_note(matrix: Matrix) -> str:
    return (
        "Nats are per image. In square brackets: a conservative 95 % interval over images, mean "
        "over seeds. I(x; top) tells between "
        f"{matrix.information_images} images; ^ marks where it is at its ceiling in some seed. "
        "Where an arm has a context, that is the top latent."
    )


def main(arguments: Sequence[str]) -> int:
    """Write the page of a matrix.json beside it, under its name; the exit status."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(arguments[0])
    return exit_status(lambda: [write_matrix_page(read_matrix(path), path.with_suffix(".html"))])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
