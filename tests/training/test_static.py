"""Static steps: what they read lies still, and recorded once they need no Python."""

from functools import partial

import pytest
import torch

from model.noise import Noise
from model.objective import BetaNelbo
from tests import fake_graph
from tests.conftest import compose
from tests.training.test_deferred import assert_same, make_pair
from tests.training.trainers import make_trainer, weights
from utils.processes import graphs
from utils.settings.identity import run_name
from utils.training import static
from utils.training.static import StaticSteps, why_not

FEW = "model.latent_scales=[1,1]"
RISING = ["model.beta_start=0.1", "model.warmup=2", "model.kl_balance=true"]
HELD = ["train/scheduler=none", f"train.optimizer.lr={2**-9}"]  # a rate that float32 holds
on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
AWARE = "model.decoder.z_L_prior.t_sample=loss_aware"


def recorded(trainer, monkeypatch) -> None:
    """Let the trainer's steps be replayed, as by a GPU."""
    monkeypatch.setattr(graphs, "capture", fake_graph.capture)
    trainer.deferred.run = trainer.deferred.captured()
    assert trainer.deferred.run != trainer.deferred.static_step


def lasting(steps: StaticSteps) -> set[int]:
    """Where all that outlives a step has its numbers."""
    state, modules = steps.state, [steps.state.model, steps.state.ema, steps.state.objective]
    weights = [[*module.parameters(), *module.buffers()] for module in modules]
    moments = list(state.optimizer.state.values())
    return fake_graph.storages([vars(steps), steps.batches.images, moments, weights])


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.ema_rate=0.9", "train.acc_grad=2", AWARE, *RISING],
        ["train.use_amp=true", "train.grad_clip=0.01", "model.weight_norm=true", FEW],
        ["train.grad_skip_thr=3.19", "train.max_skipped_steps=100", "train.ema_rate=0.9", FEW],
    ],
)
def test_a_recorded_step_repeated_trains_as_the_plain_one(tmp_path, monkeypatch, overrides):
    """Numbers of steps, β, rates and images are read anew: three epochs differ in all of them."""
    trainers = make_pair(tmp_path, *overrides, kind="static")
    recorded(trainers[1], monkeypatch)
    for trainer in trainers:
        trainer.fit()
    assert_same(*trainers)
    assert (0 < trainers[0].progress.skipped < 15) == ("train.grad_skip_thr=3.19" in overrides)


def test_a_number_from_python_would_be_repeated(tmp_path, monkeypatch):
    """The control: as soon as one is no tensor, a recorded step trains on something else."""
    trainers = make_pair(tmp_path, FEW, "train.max_epochs=1", kind="static")
    unread = StaticSteps._unread
    monkeypatch.setattr(StaticSteps, "_unread", lambda self, x, b, number: unread(self, x, b, 0))
    recorded(trainers[1], monkeypatch)
    for trainer in trainers:
        trainer.fit()
    with pytest.raises(AssertionError):
        assert_same(*trainers)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_step_reads_nothing_but_what_stays(tmp_path, monkeypatch, fresh):
    """fresh, the control: a buffer is made anew for the step."""
    overrides = ["train.capture=true", "train.ema_rate=0.9", "model.kl_balance=true", AWARE, FEW]
    trainer = make_trainer(tmp_path, "model.beta_start=0.1", "model.warmup=2", *overrides)
    steps = trainer.deferred
    numbers = steps.epoch(0)
    steps(next(numbers), 1.0)  # which makes the optimiser's state
    before, unread, anew = lasting(steps), steps._unread, torch.tensor(1.0)
    if fresh:
        monkeypatch.setattr(steps, "_unread", lambda x, beta, n: unread(x, anew, n))
    with fake_graph.Recording() as recording:
        steps.static_step()
    assert bool(recording.outside - before) == fresh
    assert lasting(steps) - before == set()


def test_warming_up_and_recording_change_nothing(tmp_path, monkeypatch):
    overrides = ["train.capture=true", "train.ema_rate=0.9", AWARE, FEW]
    trainer = make_trainer(tmp_path, *overrides)
    state = trainer.state
    names = {**dict(state.model.named_parameters()), **dict(state.model.named_buffers())}
    names |= {f"ema.{name}": tensor for name, tensor in state.ema.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in names.items()}
    recorded(trainer, monkeypatch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in names.items())
    for entry in state.optimizer.state.values():
        assert all(not tensor.any() for tensor in entry.values())
    assert trainer.deferred.all_accepted and not trainer.deferred.row


def test_a_step_that_cannot_be_recorded_runs_as_it_is_and_says_so(tmp_path, monkeypatch):
    trainers = make_pair(tmp_path, FEW, "train.max_epochs=1", kind="static")
    call = BetaNelbo.__call__
    monkeypatch.setattr(BetaNelbo, "__call__", lambda self, out, beta: call(self, out, float(beta)))
    monkeypatch.setattr(graphs, "capture", fake_graph.capture)
    said = []
    steps = trainers[1].deferred
    steps.line = said.append
    steps.run = steps.captured()
    [sentence] = said
    assert "are not captured as a CUDA graph: " in sentence and "not permitted" in sentence
    for trainer in trainers:
        trainer.fit()
    assert_same(*trainers)


def test_a_run_goes_on_in_the_middle_of_an_epoch(tmp_path, monkeypatch):
    """From a plain run's checkpoint, which has a learning rate that is no tensor."""
    plain, static = make_pair(tmp_path, FEW, "train.max_epochs=2", kind="static")
    steps = plain.batches.epoch(0)
    for _ in range(3):
        plain.train_step(next(steps), 1.0)
    torch.save(plain.state.state_dict(), tmp_path / "middle.pth")
    static.restore(torch.load(tmp_path / "middle.pth", weights_only=True))
    recorded(static, monkeypatch)
    for trainer in (plain, static):
        trainer.fit()
    assert_same(plain, static)
    groups = torch.load(tmp_path / "static" / "last.pth", weights_only=True)["optimizer"]
    assert {type(group["lr"]) for group in groups["param_groups"]} == {float}


class Foreign(BetaNelbo):
    """An objective that isn't the project's."""


def sgd(fused: bool):
    """SGD, to be built for some parameters."""
    return partial(torch.optim.SGD, lr=1e-3, fused=fused)


@pytest.mark.parametrize(
    ("override", "optimizer", "reason"),
    [
        ("model.batch_norm=true", None, "model.batch_norm=true moves"),
        ("train.acc_grad=2", sgd(False), "SGD cannot leave out"),
        ("train.acc_grad=2", sgd(True), "SGD reads its learning rate"),
    ],
)
def test_what_cannot_be_static_is_told(tmp_path, monkeypatch, override, optimizer, reason):
    lines = []
    monkeypatch.setattr("utils.terminal.Terminal.line", lambda self, text: lines.append(text))
    trainer = make_trainer(tmp_path, "train.capture=true", FEW, override, optimizer=optimizer)
    assert trainer.deferred is None
    assert any("not captured" in line and reason in line for line in lines)


def test_gradients_that_python_looks_at_keep_a_step_from_being_recorded(tmp_path):
    """As wandb.watch=true does: a replay calls no Python."""
    trainer = make_trainer(tmp_path, "train.capture=true", FEW)
    assert why_not(trainer.step, trainer.batches) is None
    next(trainer.model.parameters()).register_hook(lambda gradient: None)
    assert "looked at in Python" in why_not(trainer.step, trainer.batches)


@pytest.mark.parametrize("several", [False, True])
def test_an_error_while_warming_up(tmp_path, monkeypatch, several):
    """Several processes must not wait for one that has left the sums of a warm-up."""
    trainer = make_trainer(tmp_path, "train.capture=true", FEW)
    steps = trainer.deferred
    steps.line = [].append
    monkeypatch.setattr(graphs, "capture", fake_graph.capture)
    monkeypatch.setattr(static.collectives, "several", lambda: several)

    def out_of_memory():
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(steps, "_warm_up", out_of_memory)
    if several:
        with pytest.raises(torch.OutOfMemoryError):
            steps.captured()
    else:
        assert steps.captured() == steps.static_step


def test_a_graph_does_not_outlive_the_training(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, "train.capture=true", "train.max_epochs=1", FEW)
    recorded(trainer, monkeypatch)
    assert trainer.deferred.run is not None
    trainer.fit()
    assert trainer.deferred.run is None


def test_a_step_that_breaks_off_while_recorded_leaves_nothing(tmp_path, monkeypatch):
    """In float16 too, whose scaler notes what it has unscaled."""
    trainers = make_pair(tmp_path, FEW, AWARE, "train.max_epochs=1", kind="static")
    for trainer in trainers:
        trainer.state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    steps = trainers[1].deferred
    steps.line = [].append
    with monkeypatch.context() as broken:
        broken.setattr(steps.step, "clip", lambda norm: float(norm))
        broken.setattr(graphs, "capture", fake_graph.capture)
        steps.run = steps.captured()
    assert steps.run == steps.static_step
    for trainer in trainers:
        trainer.fit()
    assert_same(*trainers)


def test_classes_of_ones_own_are_captured_only_when_asked_for(tmp_path):
    trainer = make_trainer(tmp_path, FEW)
    assert trainer.deferred is None  # auto, on a CPU
    assert why_not(trainer.step, trainer.batches) is None
    trainer.step.local_module.objective = Foreign()
    assert "Foreign is a class of your own" in why_not(trainer.step, trainer.batches)


def test_a_step_number_on_the_device_gives_the_same_keys():
    ids = torch.arange(5)
    for number in (0, 7, 2**40):
        keys = Noise.keyed(ids, 123, 100, torch.tensor(number)).keys
        assert torch.equal(keys, Noise.keyed(ids, 123, 100, number).keys)


def test_how_a_step_is_launched_renames_no_run():
    names = {
        run_name(compose("digits_dct_ladder", *overrides))
        for overrides in ([], ["train.capture=true"], ["train.compile=true"])
    }
    assert len(names) == 1


@pytest.mark.slow
def test_a_compiled_step_trains_as_the_plain_one(tmp_path):
    """But for rounding; β may change without anything being compiled anew."""
    trainers = []
    for compiled in ("false", "true"):
        overrides = [f"train.compile={compiled}", "train.capture=true", FEW, *RISING]
        trainers.append(make_trainer(tmp_path, *overrides))
        torch._dynamo.utils.counters.clear()
        trainers[-1].fit()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for one, other in zip(*map(weights, trainers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


class TestOnGPU:
    """What no pretended device tells."""

    pytestmark = on_gpu

    @pytest.mark.parametrize("overrides", [[], ["train.use_amp=true"], ["train.acc_grad=2"]])
    def test_a_captured_step_trains_as_the_plain_one(self, tmp_path, monkeypatch, overrides):
        monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
        base = ["train.ema_rate=0.9", AWARE, *RISING, *HELD, *overrides]
        trainers = []
        for capture in ("false", "auto"):
            trainer = make_trainer(tmp_path, f"train.capture={capture}", *base, device="cuda")
            trainer.fit()
            trainers.append(trainer)
        assert trainers[1].deferred.run != trainers[1].deferred.static_step
        for one, other in zip(*map(weights, trainers), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)  # sums by atomics differ

    def test_a_captured_step_does_not_wait(self, tmp_path):
        trainer = make_trainer(tmp_path, "train.log_every=100", device="cuda")
        numbers = trainer.deferred.epoch(0)
        trainer.train_step(next(numbers), 1.0)
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.train_step(next(numbers), 1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_what_cannot_be_captured_runs_as_it_is(self, tmp_path, monkeypatch):
        call = BetaNelbo.__call__
        monkeypatch.setattr(BetaNelbo, "__call__", lambda s, out, beta: call(s, out, float(beta)))
        trainer = make_trainer(tmp_path, device="cuda")
        trainer.fit()
        assert trainer.deferred.run == trainer.deferred.static_step
        assert trainer.progress.step == 15 and not trainer.progress.skipped
