"""Tables for trackers: every figure is the file's, every thumbnail its image."""

import json

import numpy as np
import pytest
import torch

from datasets.loaders import EvaluationBatches
from tests.report.conftest import IMAGES
from utils.evaluation.record import ScoreRecord
from utils.report import figure_tables
from utils.report.figure_tables import report_of, score_tables, thumbnails_of


def columns(table):
    """By name, in the order of the rows."""
    return dict(zip(table.columns, map(list, zip(*table.rows, strict=True)), strict=True))


@pytest.fixture
def scored(written):
    """The report's content, its record as a run has it, and per-image figures that fit."""
    folder, content, _ = written
    record = ScoreRecord.model_validate(content)
    layers = len(record.bound.kl)
    draw = np.random.default_rng(0).normal
    per_image = {"nelbo": draw(size=30), "kl": draw(size=(30, layers)), "nll_iwae": draw(size=30)}
    return report_of(record, folder / "report.json"), record, per_image


def test_a_row_per_layer_has_what_the_report_has(scored):
    report, record, per_image = scored
    (table,) = score_tables(report, per_image, {})
    found = columns(table)
    assert table.name == "test_layers"
    assert found["layer"] == list(range(len(record.bound.kl)))
    assert found["kl"] == record.bound.kl and found["active"] == record.bound.active
    assert found["lost_without"] == [layer.without.lost for layer in report.layers]
    assert found["information"] == [layer.information.value for layer in report.layers]
    assert found["verdict"] == [layer.verdict for layer in report.layers]
    assert found["accuracy"] == [row.linear.value for row in report.probes.alone]
    json.dumps(table.rows)  # plain numbers and texts


def test_without_a_report_or_with_another_the_scores_remain(scored, tmp_path):
    report, record, per_image = scored
    (table,) = score_tables(report_of(record, tmp_path / "report.json"), per_image, {})
    assert columns(table)["collapsed"] == record.bound.collapsed and "verdict" not in table.columns
    other = report.model_dump() | {"bound": report.bound.model_dump() | {"nelbo": 1.0}}
    (tmp_path / "report.json").write_text(json.dumps(other, default=str))
    assert report_of(record, tmp_path / "report.json") is record


def test_a_row_per_image_has_its_figures_and_its_picture(scored):
    report, record, per_image = scored
    batches = EvaluationBatches(IMAGES, 16, 30)
    _, table = score_tables(report, per_image, thumbnails_of(batches, record.images_digest))
    layers = [f"kl_{layer}" for layer in range(len(record.bound.kl))]
    assert table.name == "test_images"
    assert table.columns == ["id", "image", "nll_iwae", "nelbo", *layers]
    found = columns(table)
    assert found["id"] == list(range(30)) and found["nll_iwae"] == per_image["nll_iwae"].tolist()
    assert found["kl_1"] == per_image["kl"][:, 1].tolist()
    shown = np.stack(found["image"])
    expected = IMAGES[:, 0].numpy() * (255 / 16)
    assert shown.dtype == np.uint8 and np.abs(shown - expected).max() <= 0.501


def test_thumbnails_of_another_split_are_not_taken_for_this_ones(scored):
    report, _, per_image = scored
    other = thumbnails_of(EvaluationBatches(IMAGES, 16, 30), "another")
    assert len(score_tables(report, per_image, other)) == 1


@pytest.mark.parametrize(
    ("shape", "shown"), [((3, 200, 200), (50, 50, 3)), ((1, 28, 28), (28, 28))]
)
def test_thumbnails_are_bounded(monkeypatch, shape, shown):
    monkeypatch.setattr(figure_tables, "IMAGES", 7)
    levels = torch.arange(20).byte()[:, None, None, None].expand(20, *shape)
    found = thumbnails_of(EvaluationBatches(levels, 255, 4), "digest")
    assert found["ids"].tolist() == [0, 2, 5, 8, 11, 14, 17]
    assert found["images"].shape == (7, *shown)
    assert [image.max() for image in found["images"]] == found["ids"].tolist()
