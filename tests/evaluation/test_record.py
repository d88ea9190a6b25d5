"""Score records: the same file back, files of earlier versions, and files that are none."""

import json

import pytest

from tests.evaluation.test_compare import run
from utils.errors import ConfigError
from utils.evaluation.record import ScoreRecord
from utils.files import write_json

FULL = {
    "name": "a",
    "seed": 0,
    "code": "0123456789ab-dirty",
    "parameters": {"parameters/all": 10, "parameters/encoder": 4},
    "checkpoint": "runs/a/checkpoints/best.pth",
    "checkpoint_digest": "00ff",
    "dataset": "digits",
    "split": "test",
    "images_digest": "abcd",
    "protocol": "probability of the grey levels",
    "conditions": {"noise_seed": 0},
    "dims": 64,
    "context": False,
    "bound": {
        "images": 5,
        "passes": 7,
        "reconstruction": 100.5,
        "nelbo": 103.5,
        "nelbo_se": 0.25,
        "kl": [1.0, 2.0],
        "kl_se": [0.125, 0.25],
        "elements": [4, 16],
        "active": [1, 8],
        "active_low": [0, 7],
        "active_high": [1, 9],
        "collapsed": [3, 0],
    },
    "active_by_threshold": [20] * 24 + [9] * 25,
    "likelihoods": [
        {
            "estimator": "iwae",
            "num_samples": 10,
            "prior_samples": None,
            "nll": 101.0,
            "nll_se": 0.5,
            "ess": 3.5,
            "images": 5,
        }
    ],
    "quality": {"reconstruction_mse": 0.125, "reconstruction_psnr": 20.5},
    "metrics": {"own": [0.5, 0.25]},
    "config": {"name": "a", "train": {"seed": 0}},
    "seconds": 1.5,
}


def test_a_record_is_written_as_it_was_read(tmp_path):
    path = write_json(tmp_path / "results.json", FULL)
    again = write_json(tmp_path / "again.json", ScoreRecord.read(path).to_json())
    assert again.read_bytes() == path.read_bytes()


def test_figures_under_the_trackers_keys():
    values = ScoreRecord.model_validate(FULL).tracker_values()
    assert values["test/kl"] == 3 and values["test/active_units"] == 9 / 20
    assert values["test/nll_iwae"] == 101 and values["test/reconstruction_psnr"] == 20.5
    assert values["parameters/encoder"] == 4 and values["test/own_1"] == 0.25
    assert "test/fid" not in values
    keys = list(values)
    assert keys.index("test/active_units_0") == keys.index("test/kl_0") + 1


def test_files_of_earlier_versions_are_read(tmp_path):
    added_later = ("code", "parameters", "conditions", "quality", "metrics", "seconds")
    content = {key: value for key, value in FULL.items() if key not in added_later}
    record = ScoreRecord.read(write_json(tmp_path / "results.json", content))
    assert record.parameters == {} and record.quality is None and record.metrics == {}
    assert record.bound.posterior_samples == 7
    assert record.conditions is None and "train.seed 0" in record.conditions_text
    assert "conditions" not in record.to_json()
    assert run().record.code is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (json.dumps(FULL)[:200], "is not a whole JSON file"),
        ("", "is not a whole JSON file"),
        ("[1, 2]", "holds a list instead of a record"),
        (json.dumps({"wandb_id": "x"}), "does not hold a model's scores"),
        (json.dumps({**FULL, "dims": "many"}), r"does not hold a model's scores \(dims: "),
        (json.dumps({**FULL, "bound": {"kl": []}}), r"\(bound.images: Field required\)"),
        (json.dumps(FULL).replace("[3, 0]", "[3]"), r"\(bound.collapsed has 1 layers of 2\)"),
        (json.dumps({**FULL, "metrics": {"own": [0.5]}}), r"\(metrics.own has 1 layers of 2\)"),
        ("[" * 100_000, "is not a whole JSON file"),
        (json.dumps({**FULL, "seed": 0}).replace('"seed": 0', f'"seed": {"9" * 5000}'), "whole"),
        (json.dumps({**FULL, "split": "x/../../private"}), r"\(split: Input should be 'train'"),
        (json.dumps({**FULL, "name": "\x1b[31m"}), r"\(name: "),
        (json.dumps({**FULL, "name": "\ud800"}), r"\(name: "),
        (json.dumps({**FULL, "name": "a" * 201}), r"\(name: String should have at most 200"),
        (json.dumps({**FULL, "dataset": "a\n# b"}), r"\(dataset: "),
        (json.dumps({**FULL, "dims": 0}), r"\(dims: "),
        (json.dumps({**FULL, "dims": 10**400}), r"\(dims: "),
        (json.dumps(FULL).replace("[4, 16]", "[0, 16]"), r"\(bound.elements.0: "),
        (json.dumps({**FULL, "active_by_threshold": [1]}), r"\(active_by_threshold: List should"),
    ],
)
def test_a_cut_or_foreign_file_is_named_with_the_remedy(tmp_path, text, complaint):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as error:
        ScoreRecord.read(path)
    told = str(error.value)
    assert str(path) in told and "remove it, and evaluate the checkpoint again" in told
    assert "\n" not in told
