"""Writes the results of stored figures: a page with tables, and two pictures for it.

python -m docs.results.make docs/results/mnist.json

The file is what collect.py writes; mnist.md, mnist_curves.svg and mnist_layers.svg go beside it.
"""

import sys
from collections.abc import Sequence
from math import log
from pathlib import Path
from statistics import fmean

from pydantic import ValidationError

from docs.pictures.curves import draw_curves
from docs.pictures.draw import kl_per_layer, of_arm, top_kl
from docs.results.collect import Results
from docs.results.tables import (
    MEANS,
    PAPER,
    Kind,
    changes_table,
    kinds,
    markdown,
    of_kind,
    results_table,
    title_of,
    trained,
)
from model.estimators import ESTIMATORS
from utils.errors import ConfigError, exit_status
from utils.files import atomic_write, read_json
from utils.report.matrix_cells import BY_KEY

REMEDY = "make it again by python -m docs.results.collect"


def page(results: Results, stem: str) -> str:
    """The page in Markdown."""
    parts = [f"# Results: {results.dataset}", about(results), markdown(results_table(results))]
    parts.append(notes(results))
    if len(results.arms) > 1:
        parts += [f"## Differences from `{results.arms[0].label}`", changes_note(results)]
        parts.append(markdown(changes_table(results)))
    parts += ["## Over training, and by layer", f"![{curve_title(results)}]({stem}_curves.svg)"]
    parts += [f"![KL of each latent layer]({stem}_layers.svg)", "## Commands"]
    parts += [commands(results), *more_scores(results)]
    return "\n\n".join(parts) + "\n"


def about(results: Results) -> str:
    """Which images, by what code, and how long."""
    hours = sum(run.hours for run in results.trained)
    return (
        f"{results.images:,} {results.split} images of {results.dataset} ({results.protocol}), "
        f"{len(results.cells)} runs, {hours:.3g} hours of training steps in all, code "
        f"{', '.join(results.versions)}. Nats are per image."
    )


def notes(results: Results) -> str:
    """What the columns are."""
    lines = [
        "±: 95 % over seeds, which is what training anew would give; of −log p(x) in brackets over "
        "seeds, then over images."
    ]
    ceiling = f"{results.information_images} images, at most {log(results.information_images):.2f}"
    more = {"information": f", between {ceiling} nats (^: so much that more could not be told)"}
    lines += [f"{title_of(key)}: {BY_KEY[key].explanation}{more.get(key, '')}." for key in MEANS]
    named = dict.fromkeys(kind[0] for kind in kinds(results))
    lines += [line for kind in kinds(results) if (line := counting(results, kind))]
    lines += [f"`{name}`: {ESTIMATORS[name].description}." for name in named if name in ESTIMATORS]
    paper = (
        "The paper's figures are Kuzina & Tomczak's (2023), of longer training (600 epochs on "
        "MNIST), by the estimator `published` on all images."
    )
    if any(arm.settings["experiment"] in PAPER for arm in results.arms):
        lines.append(paper)
    return "\n".join(f"- {line}" for line in lines)


def counting(results: Results, kind: Kind) -> str:
    """How many of an estimate's weights count, by model; empty where they are no such weights."""
    told = []
    for arm in results.arms:
        found = [of_kind(run, kind) for run in trained(results, arm)]
        sizes = [estimate.ess for estimate in found if estimate and estimate.ess is not None]
        told += [f"{fmean(sizes):.1f} in `{arm.label}`"] if sizes else []
    if not told:
        return ""
    return (
        f"Effective number of the {kind[1]:,} weights of `{kind[0]}`, {kind[2]:,} images: "
        f"{', '.join(told)}. With more weights the figure would fall."
    )


def changes_note(results: Results) -> str:
    """What the table of differences says."""
    return (
        "Of equal seeds. In brackets: ± 95 % over seeds, then over images, which holds for these "
        "trained models. •: resolved over seeds, after "
        f"Holm's correction. −log p(x) is by `iwae`, K = {results.num_samples}, as in the reports."
    )


def commands(results: Results) -> str:
    """What trains each model."""
    lines = []
    for arm in results.arms:
        changed = [f"{key}={value}" for key, value in arm.settings.items()]
        words = [f"'{word}'" if set(word) & set("[]{}* ") else word for word in changed]
        seeds = ",".join(map(str, arm.seeds))
        sweep = "-m " if len(arm.seeds) > 1 else ""
        lines.append(f"python run_experiment.py {sweep}{' '.join(words)} train.seed={seeds}")
    return block(lines)


def more_scores(results: Results) -> list[str]:
    """The commands of what was scored beside training's own end, and what pairs it; a block."""
    lines = []
    for samples, images in sorted({kind[1:] for kind in kinds(results)}):
        if (f"{samples:,}", images) != (results.num_samples, results.images):
            few = f" task.num_images={images}" if images < results.images else ""
            place = f"k{samples}"
            lines.append(
                f"python run_experiment.py task=test checkpoint=runs/RUN model.is_k={samples}{few} "
                f"task.output=runs/RUN/{place}"
            )
            folders = ",".join(f"runs/{run.run}/{place}" for run in results.trained)
            lines.append(f"python run_experiment.py task=compare 'runs=[{folders}]'")
    return ["For each run, and then all of them:", block(lines)] if lines else []


def block(lines: Sequence[str]) -> str:
    """Commands in Markdown."""
    return "\n".join(["```bash", *lines, "```"])


def curve_title(results: Results) -> str:
    """What the picture of the curves is of."""
    return f"−ELBO and KL of the top latent on the validation images of {results.dataset}"


def pictures(results: Results) -> dict[str, str]:
    """The SVGs, by what their names end in."""
    labels = [arm.label for arm in results.arms]
    nelbo = {run.run: run.nelbo for run in results.trained}
    runs = [(labels.index(cell.arm), cell) for cell in results.cells]
    curves = draw_curves(
        labels,
        [(number, cell.epochs, nelbo[cell.run]) for number, cell in runs],
        [(number, cell.epochs, cell.kl[0]) for number, cell in runs],
        results.dataset,
    )
    plain = [cell.model_dump() for cell in results.cells]
    chosen = {label: of_arm(plain, label) for label in labels}
    tops = [f"{label}: {top_kl(own)} nats" for label, own in chosen.items()]
    text = f"KL of the top latent by model: {'; '.join(tops)}."
    layers = kl_per_layer(chosen, results.dataset, results.epochs, text)
    return {"curves": curves, "layers": layers}


def read_results(path: Path) -> Results:
    """The figures in a file.

    Raises:
        ConfigError: if it holds something else.
    """
    try:
        return Results.model_validate(read_json(path, REMEDY))
    except ValidationError as error:
        raise ConfigError(f"{path} holds no results of runs: {REMEDY}.") from error


def write(path: Path) -> list[Path]:
    """Write the page and its pictures beside the file; their paths."""
    results = read_results(path)
    texts = {path.with_suffix(".md"): page(results, path.stem)}
    for name, drawing in pictures(results).items():
        texts[path.with_name(f"{path.stem}_{name}.svg")] = drawing
    return [
        atomic_write(target, lambda file, text=text: file.write(text.encode()))
        for target, text in texts.items()
    ]


def main(arguments: Sequence[str]) -> int:
    """The command; its exit status."""
    if len(arguments) != 1:
        print(f"Use: {__doc__.splitlines()[2]}", file=sys.stderr)
        return 1
    return exit_status(lambda: write(Path(arguments[0])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
