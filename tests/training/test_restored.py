"""A state out of a file is gone on from whole, or refused in a sentence."""

import copy

import pytest
import torch

from tests.training.trainers import make_trainer, weights


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """(trainer, the state of its first epoch)."""
    folder = tmp_path_factory.mktemp("stopped")
    extra = ("train.ema_rate=0.9", "train.max_epochs=1", "train/scheduler=cosine")
    trainer = make_trainer(folder, *extra)
    trainer.fit()
    return trainer, torch.load(folder / "last.pth", weights_only=True)


def first(state):
    """The optimiser's entries of the first parameter."""
    return next(iter(state["optimizer"]["state"].values()))


WRONG = {
    "no model": lambda s: s.pop("model"),
    "model none": lambda s: s.update(model=None),
    "model text": lambda s: s.update(model="text"),
    "model of another": lambda s: s["model"].pop("encoder.stem.bias"),
    "wider": lambda s: s["model"].update({"encoder.stem.bias": torch.zeros(99)}),
    "no ema": lambda s: s.pop("ema"),
    "ema none": lambda s: s.update(ema=None),
    "ema empty": lambda s: s.update(ema={}),
    "no optimizer": lambda s: s.pop("optimizer"),
    "optimizer list": lambda s: s.update(optimizer=[1]),
    "no groups": lambda s: s["optimizer"].pop("param_groups"),
    "two groups": lambda s: s["optimizer"].update(param_groups=2 * s["optimizer"]["param_groups"]),
    "learning rate": lambda s: s["optimizer"]["param_groups"][0].update(lr="fast"),
    "learning rate nan": lambda s: s["optimizer"]["param_groups"][0].update(lr=float("nan")),
    "too few": lambda s: s["optimizer"]["param_groups"][0]["params"].pop(),
    "moment's shape": lambda s: first(s).update(exp_avg=torch.zeros(3)),
    "moment no tensor": lambda s: first(s).update(exp_inf="x", exp_avg=1.0),
    "parameter that is not": lambda s: s["optimizer"]["state"].update({10**6: first(s)}),
    "no scheduler": lambda s: s.pop("scheduler"),
    "its method": lambda s: s["scheduler"].update(step=3),
    "its optimiser": lambda s: s["scheduler"].update(optimizer={}),
    "its number": lambda s: s["scheduler"].update(T_max="many"),
    "no scaler": lambda s: s.pop("scaler"),
    "no progress": lambda s: s.pop("progress"),
    "progress none": lambda s: s.update(progress=None),
    "progress more": lambda s: s["progress"].update(more=1),
    "step text": lambda s: s["progress"].update(step="many"),
    "sums text": lambda s: s["progress"].update(sums="many"),
    "step nan": lambda s: s["progress"].update(step=float("nan")),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_state_is_refused(stopped, name):
    trainer, state = stopped
    state = copy.deepcopy(state)
    WRONG[name](state)
    with pytest.raises(ValueError, match=r"The checkpoint to go on from does not fit") as caught:
        trainer.restore(state)
    assert "\n" not in str(caught.value)


def test_its_own_state_is_not(stopped):
    trainer, state = stopped
    state = copy.deepcopy(state)
    state["scheduler"]["verbose"] = False  # as PyTorch 2.6 wrote
    trainer.restore(state)
    own = trainer.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in state["model"].items())
    assert trainer.progress.step == 5 and len(weights(trainer)) == len(state["model"])


def test_a_run_begun_in_bfloat16_goes_on_where_float16_needs_a_scaler(stopped, tmp_path):
    _, state = stopped
    assert state["scaler"] == {}  # none was needed
    trainer = make_trainer(tmp_path, "train.ema_rate=0.9", "train.max_epochs=1")
    trainer.state.scaler = torch.amp.GradScaler("cpu", enabled=True)
    trainer.state.load_state_dict(copy.deepcopy(state))
    assert trainer.state.scaler.get_scale() == 65536.0
