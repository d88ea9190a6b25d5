"""Averaged weights are those of PyTorch's AveragedModel, to the last bit, and so is their state."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.conftest import compose, randomised, shrunk
from utils.settings.build import build_model
from utils.training.average import AveragedWeights

DECAY = 0.9


@pytest.fixture(params=[torch.float32, torch.float64])
def model(request):
    """A small model with buffers that training moves."""
    experiment = "digits_dct_ladder"
    settings = compose(
        experiment, *shrunk(experiment), "model.decoder.z_L_prior.t_sample=loss_aware"
    )
    torch.manual_seed(0)
    return build_model(settings).to_device("cpu", request.param)


def pytorch(model):
    """PyTorch's average of it."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))


def step(model):
    """What an optimiser and `after_optimizer_step` change."""
    randomised(model)
    model.decoder.priors[0].step_loss += 1.0


def assert_equal(one, other):
    """Two states: names in order, types and values."""
    assert list(one) == list(other)
    for a, b in zip(one.values(), other.values(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_every_update_is_that_of_pytorch(model):
    ours, theirs = AveragedWeights(model, DECAY), pytorch(model)
    assert_equal(ours.state_dict(), theirs.state_dict())
    for _ in range(4):
        step(model)
        ours.update(model)
        theirs.update_parameters(model)
        assert_equal(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("updates", [0, 3])
def test_either_goes_on_from_the_other_s_state(model, updates):
    ours, theirs = AveragedWeights(model, DECAY), pytorch(model)
    for _ in range(updates):
        step(model)
        ours.update(model)
        theirs.update_parameters(model)
    new, old = AveragedWeights(model, DECAY), pytorch(model)
    new.load_state_dict(theirs.state_dict())
    old.load_state_dict(ours.state_dict())
    step(model)
    new.update(model)
    old.update_parameters(model)
    assert_equal(new.state_dict(), old.state_dict())


@pytest.mark.parametrize("updates", [0, 2])
def test_a_step_that_is_not_accepted_changes_nothing(model, updates):
    average = AveragedWeights(model, DECAY)
    for _ in range(updates):
        step(model)
        average.update(model, torch.tensor(True))
    before = {name: value.clone() for name, value in average.state_dict().items()}
    step(model)
    average.update(model, torch.tensor(False))
    assert_equal(average.state_dict(), before)
