"""Deferred and static steps: what a GPU does without being waited for, or as one graph, comes out
the same to the last bit.
"""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from tests.training.trainers import make_trainer, rows
from utils.runs.background import snapshot
from utils.runs.signals import Interrupted
from utils.training import deferred
from utils.training.static import StaticSteps
from utils.training.stopping import TrainingStopped

both = pytest.mark.parametrize("kind", ["deferred", "static"])


def make_pair(folder, *overrides, kind="deferred", log_every=4):
    """Two equal trainers, the second with deferred or static steps."""
    trainers = []
    for name in ("immediate", kind):
        (folder / name).mkdir(exist_ok=True)
        base = [f"train.log_every={log_every}", "model.latent_scales=[2,1]"]
        base += [f"train.capture={str(name == 'static').lower()}"]
        trainers.append(make_trainer(folder / name, *base, *overrides))
    if kind == "deferred":
        trainers[1].deferred = trainers[1].defer_steps()  # as on a GPU
    assert isinstance(trainers[1].deferred, StaticSteps) == (kind == "static")
    return trainers


def assert_same(immediate, deferred):
    """Weights, the optimiser's moments, counts and metrics, to the last bit."""
    states = [snapshot(trainer.state.state_dict()) for trainer in (immediate, deferred)]
    for state in states:
        state["progress"].pop("seconds")
    flat = [tree_flatten(state)[0] for state in states]
    for a, b in zip(*flat, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    folders = [trainer.tracker.folder for trainer in (immediate, deferred)]
    assert rows(folders[0]) == rows(folders[1])


def spoil(trainer, factors):
    """Multiply a gradient in these training steps (from 1)."""
    trainer.model.encoder.stem.bias.register_hook(
        lambda g: g.abs() * factors.get(trainer.progress.step + 1, 1.0)
    )


class NothingRead(TorchDispatchMode):
    """Within it, reading a number from a tensor is an error."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "masked_select"), name
        return func(*args, **(kwargs or {}))


def test_a_deferred_step_reads_nothing(tmp_path):
    _, trainer = make_pair(tmp_path, "train.grad_skip_thr=100", log_every=100)
    for _, micro_batches in zip(range(2), trainer.batches.epoch(0), strict=False):
        with NothingRead():
            trainer.train_step(micro_batches, 1.0)
    assert len(trainer.deferred.pending) == 2 and not trainer.progress.sums


@both
def test_deferred_steps_change_nothing(tmp_path, kind):
    overrides = ["train.acc_grad=2", "model.decoder.z_L_prior.t_sample=loss_aware"]
    overrides += ["train.checkpoint_every=4 steps", "train.ema_rate=0.9", "train.use_amp=true"]
    overrides += ["model.beta_start=0.1", "model.warmup=2", "model.kl_balance=true"]
    trainers = make_pair(tmp_path, *overrides, kind=kind, log_every=3)
    saved = []
    for trainer in trainers:
        saved.append([])
        put = trainer.checkpointer.saver.put

        def noted(names, state, put=put, steps=saved[-1]):
            steps.append(state["progress"]["step"])
            put(names, state)

        trainer.checkpointer.saver.put = noted
        trainer.fit()
    assert_same(*trainers)
    assert saved[0] == saved[1] and {4, 8, 12} < set(saved[0])


@both
def test_deferred_steps_that_are_not_accepted_are_done_again(tmp_path, kind):
    overrides = ["train.on_nonfinite=skip", "model.decoder.z_L_prior.t_sample=loss_aware"]
    overrides += ["train.grad_skip_thr=1e4", "train.ema_rate=0.9"]
    trainers = make_pair(tmp_path, *overrides, kind=kind)
    for trainer in trainers:
        spoil(trainer, {1: math.inf, 3: math.nan, 7: 1e9, 8: math.inf})
        trainer.fit()
    assert trainers[0].progress.skipped == 4
    assert trainers[0].state.ema.n_averaged == 11
    assert_same(*trainers)


@both
def test_deferred_steps_move_the_loss_scale_as_others_do(tmp_path, kind):
    """An infinite gradient lowers it, whatever the losses; some finite ones in a row raise it."""
    overrides = ["train.on_nonfinite=skip", "train.grad_skip_thr=1e4"]
    trainers = make_pair(tmp_path, *overrides, kind=kind)
    for trainer in trainers:
        trainer.state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        spoil(trainer, {1: math.inf, 6: 1e9})
        trainer.fit()
    assert trainers[0].progress.skipped == 1  # the other is the scaler's
    assert trainers[0].state.scaler.get_scale() == 64  # 8 / 2, and four times three good ones
    assert_same(*trainers)


@both
def test_a_deferred_step_that_stops_the_run_says_the_same(tmp_path, kind):
    messages = []
    trainers = make_pair(tmp_path, kind=kind)
    for trainer in trainers:
        layer = trainer.model.get_submodule("decoder.blocks.2.posterior_net.2")
        layer.register_forward_hook(
            lambda m, i, output, t=trainer: output * math.nan if t.progress.step == 6 else output
        )
        with pytest.raises(TrainingStopped) as stopped:
            trainer.fit()
        messages.append(str(stopped.value).partition("; the last good")[0])
    assert (
        messages[0] == messages[1]
        and "step 7: the loss is nan, first in decoder.blocks.2" in messages[0]
    )
    assert_same(*trainers)


@both
@pytest.mark.parametrize(("several", "heard"), [(False, 1), (True, 4)])
def test_a_stop_is_heard_however_seldom_losses_are_read(
    tmp_path, monkeypatch, kind, several, heard
):
    """By one process after its step; by several where all look, for they must agree."""
    _, trainer = make_pair(tmp_path, kind=kind, log_every=500)
    monkeypatch.setattr(deferred, "AGREED_EVERY", 4)
    trainer.signals.stop_requested = True
    with monkeypatch.context() as joined, pytest.raises(Interrupted):
        joined.setattr(deferred.collectives, "several", lambda: several)
        trainer.fit()
    assert trainer.progress.step == heard
    saved = torch.load(tmp_path / kind / "last.pth", weights_only=True)
    assert saved["progress"]["step"] == heard and saved["progress"]["sums"][0] == heard


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("override", ["train.ema_rate=0.9", "train.use_amp=true"])
def test_a_gpu_is_not_waited_for_within_a_step(tmp_path, override):
    trainer = make_trainer(
        tmp_path, "train.log_every=100", "train.capture=false", override, device="cuda"
    )
    assert trainer.deferred
    steps = list(trainer.batches.epoch(0))
    trainer.train_step(steps[0], 1.0)  # which finds algorithms
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(steps[1], 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
