"""Results from finished runs: collected into one file, and of it the page and its pictures."""

import json
import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

from docs.pictures import draw
from docs.results import collect, make
from tests.commands import only_run
from tests.conftest import ROOT
from tests.documented import overrides
from utils.evaluation.record import ScoreRecord
from utils.settings import composition
from utils.settings.identity import determining

SHIFT = 2.0  # nats


def copied(run, folder, change, nats=0.0):
    """A run as if it had other settings, and every image's −log p(x) were higher."""
    shutil.copytree(run, folder)
    for path in (folder / "results.json", folder / "report" / "report.json"):
        record = json.loads(path.read_text())
        change(record)
        for estimate in record["likelihoods"]:
            estimate["nll"] += nats
        path.write_text(json.dumps(record))
    with np.load(folder / "results.npz") as arrays:
        kept = {key: arrays[key] + nats * key.startswith("nll") for key in arrays.files}
    np.savez(folder / "results.npz", **kept)
    return folder


def seeded(record):
    record["seed"] = record["config"]["train"]["seed"] = 7


def floored(record):
    record["config"]["model"]["free_bits_thr"] = 1.5


@pytest.fixture
def runs(trained, tmp_path):
    """Two seeds of a model, and one of the first seed with another setting and 2 nats more."""
    first = only_run(trained[0])
    second = copied(first, tmp_path / "second", seeded, 0.5)
    return [first, second, copied(first, tmp_path / "other", floored, SHIFT)]


def test_runs_become_a_page_with_known_figures_and_its_pictures(runs, tmp_path, capsys):
    more = runs[0] / "results.json"
    extra = runs[1] / "k9" / "test_scores.json"  # a score that only one of two seeds has
    extra.parent.mkdir()
    record = json.loads((runs[1] / "results.json").read_text())
    record["likelihoods"][0]["num_samples"] = 9
    extra.write_text(json.dumps(record))
    file = tmp_path / "results" / "digits.json"
    assert collect.main([str(file), *map(str, runs)]) == 0
    assert make.main([str(file)]) == 0
    assert capsys.readouterr().out.split() == [
        str(file.with_name(f"digits{end}"))
        for end in (".json", ".md", "_curves.svg", "_layers.svg")
    ]
    page = file.with_suffix(".md").read_text()
    nll = {e["estimator"]: e["nll"] for e in json.loads(more.read_text())["likelihoods"]}
    tables = [[cells(line) for line in part.splitlines()] for part in parts(page)]
    (titles, _, pair, other), (_, _, difference) = tables
    column = next(i for i, title in enumerate(titles) if title.startswith("−log p(x): `iwae`"))
    width = 12.706 * 0.25  # Student's t of two values, 0.5 apart
    assert pair[column].startswith(f"{nll['iwae'] + 0.25:.2f} (± {width:.2f}; ± ")
    assert other[column].startswith(f"{nll['iwae'] + SHIFT:.2f} (–; ± ")
    assert (pair[1], other[1]) == ("7, 123", "123")
    of_one = next(i for i, title in enumerate(titles) if "K = 9, all images" in title)
    assert pair[of_one].endswith("), seed 7") and other[of_one] == "–"
    assert "task=test checkpoint=runs/RUN model.is_k=9 task.output=runs/RUN/k9" in page
    assert "/k9,runs/" in page and "Effective number of the 9 weights of `iwae`" in page
    assert difference[1] == "+2.00 (–; ± 0.00)"
    for name in ("curves", "layers"):
        drawing = file.with_name(f"digits_{name}.svg").read_text()
        lines = ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}polyline")
        assert len(list(lines)) == 3 * (2 if name == "curves" else 1)
        assert "prefers-color-scheme: dark" in drawing and f"digits_{name}.svg" in page


def parts(page):
    """The tables of a page."""
    return [part for part in re.findall(r"(?:^\|.*\n)+", page, re.M)]


def cells(line):
    """Of a row of a table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_command_on_the_page_has_the_runs_settings(runs, tmp_path):
    results = collect.collect(runs)
    lines = make.commands(results).splitlines()[1:-1]
    jobs = [job for line in lines for job in overrides(line)]
    found = [determining(composition.composed_settings(composition.compose(j)).plain) for j in jobs]
    reports = [ScoreRecord.read(run / "results.json") for run in runs]
    expected = [determining(record.config) for record in reports]
    order = sorted(range(len(found)), key=lambda i: json.dumps(found[i], sort_keys=True))
    assert len(found) == 3
    assert [found[i] for i in order] == sorted(
        expected, key=lambda each: json.dumps(each, sort_keys=True)
    )


def test_a_setting_apart_from_what_it_follows_is_in_the_command(runs, tmp_path):
    """Where both are changed, and not alike: the schedule's length and the number of epochs."""

    def stopped(record):
        record["config"]["train"] |= {"max_epochs": 40}
        record["config"]["train"]["scheduler"]["T_max"] = 100

    results = collect.collect([copied(runs[0], tmp_path / "stopped", stopped)])
    assert results.arms[0].settings["train.scheduler.T_max"] == "100"


def test_the_page_in_the_tree_is_what_its_script_makes(tmp_path):
    for name in ("mnist.json", "mnist.md", "mnist_curves.svg", "mnist_layers.svg"):
        shutil.copy(ROOT / "docs" / "results" / name, tmp_path / name)
    stored = {path.name: path.read_text() for path in tmp_path.iterdir()}
    make.write(tmp_path / "mnist.json")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == stored


def test_what_is_no_finished_run_or_no_results_is_named(tmp_path, capsys):
    assert collect.main([str(tmp_path / "a.json"), str(tmp_path)]) == 1
    assert f"Error: {tmp_path} is not a finished run" in capsys.readouterr().err
    (tmp_path / "b.json").write_text("{}")
    assert make.main([str(tmp_path / "b.json")]) == 1
    assert "b.json holds no results of runs: make it again by" in capsys.readouterr().err
    assert list(tmp_path.glob("*.svg")) == []


def test_the_picture_of_the_readme_is_what_its_script_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(draw, "HERE", tmp_path)
    draw.main()
    stored = (ROOT / "docs" / "pictures" / "kl_per_layer.svg").read_text()
    assert (tmp_path / "kl_per_layer.svg").read_text() == stored
