"""Collapse metrics: the standard ones are the report's figures, one's own appear everywhere."""

import json

import pytest
import torch

from datasets.loaders import EvaluationBatches
from tests.conftest import compose, randomised, shrunk
from utils.errors import ConfigError
from utils.evaluation import scoring
from utils.evaluation.collapse import Collapse
from utils.evaluation.metrics import (
    STANDARD,
    CollapseMetric,
    checked,
    layer_values,
    metric_values,
)
from utils.evaluation.record import ScoreRecord
from utils.report.tables import layer_table, show_score
from utils.settings.build import build_model
from utils.settings.schema import Settings
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
NAMES = {LargestKl: "largest_kl", TooFew: "few"}


@pytest.fixture(scope="module")
def model():
    """A small random model."""
    torch.manual_seed(0)
    return randomised(build_model(compose("digits_ladder", *shrunk("digits_ladder"))), 0.05).eval()


def settings(*metrics: type) -> Settings:
    """The settings of `model`, with these metrics and without importance-weighted estimates."""
    overrides = ["task.estimators=[]", "task.mi_images=5"]
    for metric in metrics:
        name = NAMES[metric]
        overrides.append(f"+metrics.{name}._target_={metric.__module__}.{metric.__name__}")
    return compose("digits_ladder", *shrunk("digits_ladder"), *overrides)


def score(model, folder, *metrics: type) -> scoring.Score:
    """The score of the model."""
    checkpoint = folder / "best.pth"
    checkpoint.write_bytes(b"weights")
    told = Terminal(False)
    return scoring.score(model, settings(*metrics), BATCHES, "test", checkpoint, "digest", told)


def test_standard_metrics_are_the_reports_figures_beyond_chance(model, tmp_path):
    scored = score(model, tmp_path)
    bound = scored.record.bound
    values = layer_values(STANDARD, scored.collapse)
    assert values["kl"] == bound.kl and values.keys() == {"kl", "active_units"}
    pairs = zip(values["active_units"], bound.active_per_layer, strict=True)
    assert all(certain <= share for certain, share in pairs)
    tracked = metric_values(STANDARD, scored.collapse)
    assert list(tracked)[:3] == [f"collapse/{key}" for key in ("kl_0", "active_units_0", "kl_1")]
    assert tracked["collapse/kl_3"] == bound.kl[3]


def test_a_metric_of_ones_own_is_in_record_tables_and_tracker(model, tmp_path, capsys):
    """That it is on the page: tests/test_extending.py."""
    scored = score(model, tmp_path, LargestKl)
    expected = [units.kl.max().item() for units in scored.collapse.layers]
    assert scored.record.metrics == {"largest_kl": expected}
    assert scored.record.to_json()["metrics"] == {"largest_kl": expected}
    assert metric_values(OWN, scored.collapse)["collapse/largest_kl_5"] == expected[5]
    assert scored.record.tracker_values()["test/largest_kl_5"] == expected[5]
    show_score(Terminal(), scored.record, OWN)
    output = capsys.readouterr().out
    assert "largest KL" in output and f"{expected[5]:.5f} nats" in output


def test_a_record_from_a_file_shows_metrics_by_their_names(model, tmp_path):
    record = score(model, tmp_path, LargestKl).record
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(record.to_json()))
    table = layer_table(ScoreRecord.read(path))
    assert table.columns[-1].name == "largest_kl"
    assert [row[-1].value for row in table.rows] == record.metrics["largest_kl"]


def test_without_metrics_the_record_has_no_such_key(model, tmp_path):
    assert "metrics" not in score(model, tmp_path).record.to_json()


def test_a_metric_must_give_one_value_per_layer(model, tmp_path):
    with pytest.raises(ValueError, match=r"few returned 1 value\(s\) for 6 layers"):
        score(model, tmp_path, TooFew)


def test_no_metric_takes_a_standard_ones_name():
    own = {"largest": LargestKl()}
    assert checked(own) is own
    with pytest.raises(ConfigError, match=r"metrics.kl has the name of a metric that every run"):
        checked({"kl": LargestKl()})
