"""What is sent to W&B, as far as it can be told without a server."""

import pytest

from utils import version
from utils.tracking import wandb_code
from utils.tracking.wandb_axes import Axes
from utils.tracking.wandb_client import artifact_name


def test_hours_add_up_over_the_epochs_and_over_a_restart():
    rows = [{"train/seconds": seconds} for seconds in (3600.0, 1800.0, 900.0)]
    whole, resumed = Axes(batch_size=50), Axes(batch_size=50)
    for row in rows:
        whole.advance(row)
        resumed.advance(row)
    assert whole.at(3, 12) == {"epoch": 3, "step": 12, "images_seen": 600, "hours": 1.75}
    assert resumed.at(3, 12) == whole.at(3, 12)


def test_rows_without_their_time_have_no_hours():
    axes = Axes(batch_size=50)
    axes.advance({"train/seconds": 3600.0})
    axes.advance({"val/loss": 1.0})  # of an earlier version
    axes.advance({"train/seconds": 3600.0})
    assert axes.at(3, 12) == {"epoch": 3, "step": 12, "images_seen": 600}


@pytest.mark.parametrize("run_id", ["4f3a2b1c", "my run", "a+b", "über"])
def test_an_artifacts_name_is_one_that_wandb_takes(run_id):
    from wandb import Artifact  # refuses others

    assert Artifact(artifact_name(run_id, "best"), "model").name.endswith("-best")


SAFE = {
    "run_experiment.py": "def main(api_key: str | None = None): ...",
    "utils/settings/wandb.py": "api_key: Text | None",
    "configs/wandb/defaults.yaml": "api_key: null           # or `wandb login`",
    "configs/experiment/mine.yaml": "wandb: {api_key: null, tags: [a]}",
    "configs/empty.yaml": "wandb:\n  api_key:\n  tags: []",
}
KEPT = {
    "configs/wandb/mine.yaml": "api_key: 0123456789abcdef",
    "configs/experiment/inline.yaml": 'wandb: {"api_key": "0123456789"}',
    "configs/sweep.yaml": "overrides:\n  - wandb.api_key=0123456789",
    "utils/login.py": "KEY = 'the key of the environment'",
    "data/labels.py": "",
    "runs/a/config.yaml": "name: a",
    "model/weights.pth": "",
    ".env": "WANDB_API_KEY=0123456789",
}


def test_code_is_saved_without_keys_data_and_links(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "the key of the environment")
    for module in (version, wandb_code):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for name, content in {**SAFE, **KEPT}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "elsewhere.txt").write_text("somebody's")
    (tmp_path / "utils" / "link.py").symlink_to(tmp_path / "elsewhere.txt")
    assert [str(path.relative_to(tmp_path)) for path in wandb_code.safe_files()] == sorted(SAFE)
