"""A finished run is trained longer by its W&B id; any other changed setting is refused."""

import json

import pytest
import torch

from tests.commands import PLAIN, QUIET, call, metrics, only_run
from tests.conftest import compose
from utils.errors import ConfigError
from utils.settings.build import build_model, build_optimizer
from utils.settings.check import check
from utils.settings.extension import before_extension, extended, resumed
from utils.settings.identity import run_name

SHORT = [*PLAIN, *QUIET, "train.max_epochs=2", "train.eval_freq=9", "task.estimators=[]"]


def changed(settings, **train):
    """The settings with others under train."""
    return check({**settings.plain, "train": {**settings.plain["train"], **train}})


def test_only_more_epochs_go_on():
    own = compose("digits_ladder", "train.max_epochs=5")
    assert resumed(own, own, "S") is own
    longer = resumed(own, changed(own, max_epochs=8), "S")
    train = longer.train
    assert (train.max_epochs, train.scheduler.T_max, train.extended_from) == (8, 8, [5])
    assert run_name(longer) != run_name(changed(own, max_epochs=8))  # another result than at once
    assert before_extension(longer).plain == own.plain and before_extension(own) is None
    twice = extended(longer, 9)
    assert twice.train.extended_from == [5, 8] and before_extension(twice).plain == longer.plain
    with pytest.raises(
        ConfigError, match=r"S continues .* train.grad_clip=2.0 .*\(1.0\).*init_from"
    ):
        resumed(own, changed(own, grad_clip=2.0), "S")
    with pytest.raises(ConfigError, match=r"train.max_epochs=3 is less than the 5"):
        resumed(own, changed(own, max_epochs=3), "S")


@pytest.mark.filterwarnings("ignore:Detected call of")  # no training here
@pytest.mark.parametrize("schedule", ["cosine", "cyclic"])
def test_the_learning_rate_is_that_of_a_run_of_the_new_length(schedule):
    from utils.training.state import TrainingState

    own = compose("digits_ladder", "train.max_epochs=5", f"train/scheduler={schedule}")
    settings = {"short": own, "longer": extended(own, 8)}
    states = {}
    for name, each in settings.items():
        model = build_model(each)
        states[name] = TrainingState(model, *build_optimizer(each, model), each.train, object())
    wanted = [states["longer"].scheduler.get_last_lr()]
    for state, epochs in ((states["short"], 5), (states["longer"], 0)):
        for _ in range(epochs):
            state.scheduler.step()
        state.progress.epoch = epochs
    fresh_model = build_model(settings["longer"])
    optimizer, fresh = build_optimizer(settings["longer"], fresh_model)
    for _ in range(8):
        optimizer.step()
        fresh.step()
        wanted.append(fresh.get_last_lr())
    content = states["short"].state_dict()
    states["longer"].load_state_dict(content, new_schedule=True)
    found = [states["longer"].scheduler.get_last_lr()]
    for _ in range(3):
        states["longer"].scheduler.step()
        found.append(states["longer"].scheduler.get_last_lr())
    assert found == wanted[5:]


@pytest.mark.slow
def test_a_finished_run_is_trained_longer(tmp_path):
    call(tmp_path, *SHORT)
    short = only_run(tmp_path)
    wandb_id = json.loads((short / "run.json").read_text())["wandb_id"]
    before = torch.load(short / "checkpoints" / "last.pth", weights_only=True)
    own = [f"train.resume_id={wandb_id}", *QUIET, "task.estimators=[]"]
    own.append(next(word for word in SHORT if word.startswith("dataset._target_")))
    found = call(tmp_path, *own, "train.ema_rate=0.5", status=1)
    assert "train.init_from" in found.stderr and only_run(tmp_path) == short

    output = call(tmp_path, *own, "train.max_epochs=3").stdout
    assert "trained longer: 2 epochs before, now 3; from here on the learning rate" in output
    longer = only_run(tmp_path)  # the same run: renamed, and with its record
    assert longer != short and not short.exists()
    assert json.loads((longer / "run.json").read_text())["wandb_id"] == wandb_id
    assert [row["epoch"] for row in metrics(longer)] == [1, 2, 3]
    assert (longer / "results_of_2_epochs.json").exists() and (longer / "results.json").exists()
    after = torch.load(longer / "checkpoints" / "last.pth", weights_only=True)
    assert after["progress"]["step"] == before["progress"]["step"] * 3 // 2
    assert after["config"]["train"]["extended_from"] == [2]

    assert "Finished before" in call(tmp_path, *own, "train.max_epochs=3").stdout
    assert only_run(tmp_path) == longer
