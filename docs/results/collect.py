"""Collects the figures of finished runs into one file, from which make.py writes the results.

python -m docs.results.collect docs/results/mnist.json runs/mnist_ladder-* runs/mnist_dct_ladder-*

Every run needs its report. Runs that differ in nothing but the seed are one model; the others are
compared with the first. Other scores of a run's checkpoint (`*_scores.json`, in its folder or one
within) add their likelihoods.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from utils.errors import ConfigError, exit_status
from utils.evaluation.bound import NllEstimate
from utils.evaluation.compared_runs import DERIVED, Run, groups
from utils.evaluation.record import ScoreRecord
from utils.files import write_json
from utils.report.matrix import Matrix, build_matrix
from utils.report.matrix_cells import CellRun, read_cell
from utils.runs.folder import RESULTS
from utils.settings.composition import compose, composed_settings, experiments
from utils.settings.identity import determining


class TrainedRun(BaseModel, frozen=True):
    """How a run was trained, and all its estimates of −log p(x)."""

    run: str  # the folder's name
    epochs: int
    best_epoch: int  # whose checkpoint was scored
    hours: float  # in training steps, beside whatever else the machine did
    likelihoods: list[NllEstimate]
    nelbo: list[float]  # nats on the validation set, by epoch


class Results(Matrix, frozen=True):
    """Models × seeds; `arms` are the models, `cells` their runs."""

    dims: int  # of an image
    trained: list[TrainedRun]  # as `cells`


def collect(folders: Sequence[Path]) -> Results:
    """The figures of the runs in these folders.

    Raises:
        ConfigError: if one is not finished, or was scored on other images than the first.
    """
    cells = [read_cell("", 0, folder) for folder in folders]
    by_folder = {id(cell.report): cell for cell in cells}
    grouped = groups([Run(cell.report, cell.per_image) for cell in cells])
    named = [
        replace(by_folder[id(run.record)], arm=group.label, seed=run.seed)
        for group in grouped
        for run in group.runs
    ]
    settings = {group.label: changed_settings(group.runs[0].record) for group in grouped}
    matrix = build_matrix(named, settings, {})
    return Results(
        **dict(matrix), dims=named[0].report.dims, trained=[how_trained(cell) for cell in named]
    )


def changed_settings(record: ScoreRecord) -> dict[str, str]:
    """The experiment, and what the run sets otherwise: key -> value, as on the command line.

    Raises:
        ConfigError: if it is of none in configs/experiment.
    """
    if record.name not in experiments():
        raise ConfigError(
            f"{record.checkpoint} is of {record.name}, which configs/experiment does not have: "
            "results are of its experiments, so that one command trains them."
        )
    shipped = determining(composed_settings(compose([f"experiment={record.name}"])).plain)
    own = determining(record.config)
    changed = {
        key: own.get(key)
        for key in sorted({*own, *shipped})
        if own.get(key) != shipped.get(key) and key != "train.seed"
    }
    follows = [
        key
        for key, source in DERIVED.items()
        if key in changed and changed[key] == changed.get(source, ...)
    ]
    text = {key: json.dumps(v, separators=(",", ":")) for key, v in changed.items()}
    return {"experiment": record.name} | {
        key: value if value[0] != '"' else value.strip('"')
        for key, value in text.items()
        if key not in follows
    }


def how_trained(cell: CellRun) -> TrainedRun:
    """From a run's record of epochs, and the scores in its folder."""
    rows = cell.epochs
    batch = cell.report.config["dataset"]["data_module"]["batch_size"]
    seconds = [
        batch * (row["step"] - before["step"]) / row["train/images_per_second"]
        for before, row in zip([{"step": 0}, *rows], rows, strict=False)
        if "train/images_per_second" in row  # else no step of the epoch counted
    ]
    return TrainedRun(
        run=cell.folder.name,
        epochs=rows[-1]["epoch"],
        best_epoch=min(rows, key=lambda row: row["val/loss"])["epoch"],
        hours=float(f"{sum(seconds) / 3600:.3g}"),
        likelihoods=all_likelihoods(cell),
        nelbo=[float(f"{row['val/nelbo']:.6g}") for row in rows],
    )


def all_likelihoods(cell: CellRun) -> list[NllEstimate]:
    """Of every score of the run's checkpoint, under the same conditions; each kind once.

    The context is sampled as in the report, where there is one.
    """
    found = {}
    for path in sorted(cell.folder.rglob("*.json")):
        if path.stem == RESULTS or path.stem.endswith("_scores"):
            record = ScoreRecord.read(path)
            same = [
                (one.checkpoint_digest, one.split, one.conditions) for one in (record, cell.report)
            ]
            if same[0] == same[1]:
                found |= {
                    (e.estimator, e.num_samples, e.images): e
                    for e in record.likelihoods
                    if e.protocol in ("", cell.likelihood.protocol)
                }
    return [found[key] for key in sorted(found)]


def main(arguments: Sequence[str]) -> int:
    """The command; its exit status."""
    if len(arguments) < 2:
        print(f"Use: {__doc__.splitlines()[2]}", file=sys.stderr)
        return 1
    output, *folders = map(Path, arguments)
    return exit_status(lambda: [write_json(output, collect(folders).model_dump())])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
