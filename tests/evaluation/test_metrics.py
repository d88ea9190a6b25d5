"""Collapse metrics: the standard ones are the report's figures, one's own appear everywhere."""

import json

import pytest
import torch

from datasets.loaders import EvaluationBatches
from tests.conftest import compose, randomised, shrunk
from utils.evaluation import scoring
from utils.evaluation.collapse import Collapse
from utils.evaluation.metrics import STANDARD, CollapseMetric, layer_values, metric_values
from utils.evaluation.record import ScoreRecord
from utils.processes.launch import Processes
from utils.report.collapse_report import write_report
from utils.report.tables import layer_table, show_score
from utils.settings.build import build_model
from utils.terminal import Terminal

IMAGES = torch.randint(0, 17, (20, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
BATCHES = EvaluationBatches(IMAGES, 16, 20)


class LargestKl(CollapseMetric):
    """A metric as a user writes one."""

    title = "largest KL"
    explanation = "of a unit of the layer, in nats"

    def per_layer(self, collapse: Collapse) -> list[float]:
        return [units.kl.max() for units in collapse.layers]

    def text(self, value: float) -> str:
        return f"{value:.5f} nats"


class TooFew(LargestKl):
    """A metric that forgets all layers but one."""

    def per_layer(self, collapse: Collapse) -> list[float]:
        return super().per_layer(collapse)[:1]


OWN = {"largest_kl": LargestKl()}


@pytest.fixture(scope="module")
def model():
    """A small random model."""
    torch.manual_seed(0)
    return randomised(build_model(compose("digits_ladder", *shrunk("digits_ladder"))), 0.05).eval()


@pytest.fixture(scope="module")
def settings():
    """The settings of `model`, without importance-weighted estimates."""
    overrides = ("task.estimators=[]", "task.mi_images=5")
    return compose("digits_ladder", *shrunk("digits_ladder"), *overrides)


def score(model, settings, folder, metrics=None) -> scoring.Score:
    """The score of the model."""
    checkpoint = folder / "best.pth"
    checkpoint.write_bytes(b"weights")
    terminal = Terminal(False)
    return scoring.score(
        model, settings, BATCHES, "test", checkpoint, terminal, metrics=metrics or {}
    )


def test_standard_metrics_are_the_reports_figures(model, settings, tmp_path):
    scored = score(model, settings, tmp_path)
    bound = scored.record.bound
    values = layer_values(STANDARD, scored.collapse)
    assert values == {"kl": bound.kl, "active_units": bound.active_per_layer}
    tracked = metric_values(STANDARD, scored.collapse)
    assert list(tracked)[:3] == [f"collapse/{key}" for key in ("kl_0", "active_units_0", "kl_1")]
    assert tracked["collapse/kl_3"] == bound.kl[3]


def test_a_metric_of_ones_own_is_in_record_tables_page_and_tracker(
    model, settings, tmp_path, capsys
):
    scored = score(model, settings, tmp_path, OWN)
    expected = [units.kl.max().item() for units in scored.collapse.layers]
    assert scored.record.metrics == {"largest_kl": expected}
    assert scored.record.to_json()["metrics"] == {"largest_kl": expected}
    assert metric_values(OWN, scored.collapse)["collapse/largest_kl_5"] == expected[5]
    assert scored.record.tracker_values()["test/largest_kl_5"] == expected[5]
    show_score(Terminal(), scored.record, OWN)
    output = capsys.readouterr().out
    assert "largest KL" in output and f"{expected[5]:.5f} nats" in output
    write_report(
        model, scored, settings, BATCHES, tmp_path, Processes(), Terminal(False), metrics=OWN
    )
    assert json.loads((tmp_path / "report.json").read_text())["metrics"]["largest_kl"] == expected
    page = (tmp_path / "report.html").read_text()
    assert "largest KL" in page and all(f"{value:.5f} nats" in page for value in expected)


def test_a_record_from_a_file_shows_metrics_by_their_names(model, settings, tmp_path):
    record = score(model, settings, tmp_path, OWN).record
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(record.to_json()))
    table = layer_table(ScoreRecord.read(path))
    assert table.columns[-1].name == "largest_kl"
    assert [row[-1].value for row in table.rows] == record.metrics["largest_kl"]


def test_without_metrics_the_record_has_no_such_key(model, settings, tmp_path):
    assert "metrics" not in score(model, settings, tmp_path).record.to_json()


def test_a_metric_must_give_one_value_per_layer(model, settings, tmp_path):
    with pytest.raises(ValueError, match=r"few returned 1 value\(s\) for 6 layers"):
        score(model, settings, tmp_path, {"few": TooFew()})
