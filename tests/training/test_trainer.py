"""Training: accumulated gradients, skipped steps, averages, and stops that cost nothing."""

import itertools
import json
import math
import time
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from datasets.loaders import EvaluationBatches, TrainBatches
from tests.conftest import compose, shrunk
from utils.processes.launch import Processes
from utils.runs.background import Saver, snapshot
from utils.runs.signals import Interrupted, Signals
from utils.settings import build
from utils.terminal import Terminal
from utils.tracking.tracker import LocalSink, Tracker
from utils.training.trainer import Trainer, TrainingStopped


def make_trainer(
    folder,
    *overrides,
    experiment="digits_dct_ladder",
    optimizer=None,
    device="cpu",
    dtype=torch.float32,
    processes=Processes(),  # noqa: B008
):
    """A trainer over 40 small images whose checkpoints go to `folder`."""
    base = ["dataset.data_module.batch_size=8", "train.max_epochs=3", "train.grad_skip_thr=0"]
    settings = compose(experiment, *shrunk(experiment), *base, *overrides)
    torch.manual_seed(settings["train"]["seed"])
    model = build.build_model(settings).to(device, dtype)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 17, (56, 1, 8, 8), generator=generator).to(device, torch.uint8)
    model.fit_context(images[:40], 16)
    batches = TrainBatches(
        images[:40],
        16,
        settings["dataset"]["data_module"]["batch_size"],
        settings["train"]["seed"],
        rank=processes.rank,
        world=processes.world,
        micro_batches=settings["train"]["acc_grad"],
    )

    def write(name, state):
        torch.save(state, folder / f"{name}.pth")

    return Trainer(
        model,
        build.build_objective(settings),
        batches,
        EvaluationBatches(images[40:], 16, 8),
        *(
            (optimizer(model.parameters()), None)
            if optimizer
            else build.build_optimizer(settings, model)
        ),
        settings["train"],
        Saver(write),
        lambda model, epoch, step: None,
        Tracker(folder, [LocalSink(folder / "metrics.jsonl")]),
        Terminal(shown=False),
        Signals(60),
    )


def rows(folder) -> list[dict]:
    """The metrics, without what a clock decides."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "train/images_per_second"}
        for line in lines
    ]


def weights(trainer) -> list[torch.Tensor]:
    """All parameters and buffers."""
    return list(trainer.model.state_dict().values())


def test_training_lowers_the_loss_and_records_every_epoch(tmp_path):
    trainer = make_trainer(tmp_path, "train.max_epochs=6", "train.optimizer.lr=0.01")
    trainer.fit()
    found = rows(tmp_path)
    assert [row["epoch"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert found[-1]["step"] == 30 and found[-1]["train/loss"] < found[0]["train/loss"] - 0.1
    for row in found:
        kl = sum(row[f"collapse/kl_{i}"] for i in range(7))
        assert row["val/nelbo"] == pytest.approx(row["val/reconstruction"] + kl)
        assert row["train/loss"] * 64 * math.log(2) == pytest.approx(
            row["train/reconstruction"] + row["train/kl"], rel=1e-5
        )
    best = min(found, key=lambda row: row["val/loss"])
    saved = torch.load(tmp_path / "best.pth", weights_only=True)
    assert saved["progress"]["best_epoch"] == best["epoch"]


@pytest.mark.parametrize("stop_at", [1, 5, 7, 10])
def test_a_run_stopped_at_any_step_ends_as_one_that_was_not(tmp_path, stop_at):
    folders = [tmp_path / name for name in ("whole", "stopped")]
    for folder in folders:
        folder.mkdir()
    extra = ["train.ema_rate=0.9", "model.decoder.z_L_prior.t_sample=loss_aware"]
    whole = make_trainer(folders[0], *extra)
    whole.fit()

    stopped = make_trainer(folders[1], *extra)
    step = stopped._train_step

    def counted(*args):
        stopped.signals.asked = stopped.progress.step + 1 >= stop_at
        return step(*args)

    stopped._train_step = counted
    with pytest.raises(Interrupted):
        stopped.fit()
    assert stopped.progress.step == stop_at
    continued = make_trainer(folders[1], *extra)
    continued.restore(torch.load(folders[1] / "last.pth", weights_only=True))
    continued.fit()
    assert all(map(torch.equal, weights(whole), weights(continued)))
    averaged = [t.ema.module.state_dict().values() for t in (whole, continued)]
    assert all(map(torch.equal, *averaged))
    assert rows(folders[0]) == rows(folders[1])


def test_an_epoch_whose_validation_is_done_again_is_recorded_once(tmp_path):
    """Killed between the epoch's row and its checkpoint, with one of its last step on the disk."""
    trainer = make_trainer(tmp_path, "train.checkpoint_every=5 steps")
    save = trainer._save

    def killed(*names, **kwargs):
        if trainer.progress.batch == 0 and trainer.progress.epoch == 2:
            trainer.saver.finish()
            raise KeyboardInterrupt
        save(*names, **kwargs)

    trainer._save = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    again = make_trainer(tmp_path, "train.checkpoint_every=5 steps")
    again.restore(torch.load(tmp_path / "last.pth", weights_only=True))
    assert (again.progress.step, again.progress.epoch, again.progress.batch) == (10, 1, 5)
    again.tracker.begin(again.progress.epoch)
    again.fit()
    assert [row["step"] for row in rows(tmp_path)] == [5, 10, 15]


def test_accumulation_gives_the_gradient_of_the_big_batch(tmp_path):
    sgd = partial(torch.optim.SGD, lr=0.1)
    trainers = [
        make_trainer(tmp_path, f"train.acc_grad={n}", "train.grad_clip=0", optimizer=sgd)
        for n in (1, 4)
    ]
    for trainer in trainers:
        trainer.model.double()
        for passes in trainer.batches.epoch(0):
            passes = [type(b)(b.x.double(), b.ids) for b in passes]
            trainer._train_step(passes, 1.0)
    assert trainers[0].progress.sums == pytest.approx(trainers[1].progress.sums)
    for a, b in zip(*map(weights, trainers), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_steps_over_the_threshold_are_skipped_and_counted(tmp_path):
    trainer = make_trainer(tmp_path, "train.grad_skip_thr=1e-6", "train.max_epochs=1")
    before = [w.clone() for w in weights(trainer)]
    trainer.fit()
    assert trainer.progress.skipped == rows(tmp_path)[0]["train/skipped_steps"] == 5
    assert all(map(torch.equal, before, weights(trainer)))


def test_nothing_but_skipped_steps_stop_the_run(tmp_path):
    trainer = make_trainer(tmp_path, "train.grad_skip_thr=1e-6", "train.max_skipped_steps=7")
    with pytest.raises(TrainingStopped, match=r"step 7: 7 steps .*grad_skip_thr=1e-06"):
        trainer.fit()


def spoil(module, value, steps):
    """Make a module's output `value` in these training steps (from 1)."""
    count = 0

    def hook(module, inputs, output):
        nonlocal count
        count += module.training and torch.is_grad_enabled()
        if module.training and count in steps:
            return torch.full_like(output, value)

    module.register_forward_hook(hook)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_before_the_weights_change(tmp_path, value):
    trainer, undisturbed = make_trainer(tmp_path), make_trainer(tmp_path)
    for _, passes in zip(range(2), undisturbed.batches.epoch(0), strict=False):
        undisturbed._train_step(passes, 1.0)
    layer = "decoder.blocks.2.posterior_net.2"
    spoil(trainer.model.get_submodule(layer), value, steps={3})
    told = f"step 3: the loss is (nan|inf), first in {layer}; .*KL per layer.*last\\.pth"
    with pytest.raises(TrainingStopped, match=told):
        trainer.fit()
    assert all(map(torch.equal, weights(undisturbed), weights(trainer)))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_gradient_stops_before_the_weights_change(tmp_path, value):
    trainer = make_trainer(tmp_path)
    before = [w.clone() for w in weights(trainer)]
    trainer.model.encoder.stem.bias.register_hook(lambda g: g.abs() * value)
    with pytest.raises(TrainingStopped, match=r"gradient is not .* in encoder\.stem\.bias; recon"):
        trainer.fit()
    assert all(map(torch.equal, before, weights(trainer)))


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    trainer = make_trainer(tmp_path, "train.checkpoint_every=1 step")
    step = trainer.optimizer.step

    def broken(*args, **kwargs):
        step(*args, **kwargs)
        if trainer.progress.step == 2:
            with torch.no_grad():
                trainer.model.encoder.stem.bias[0] = math.nan

    trainer.optimizer.step = broken
    with pytest.raises(TrainingStopped, match=r"weights are not finite, first encoder\.stem\.bias"):
        trainer.fit()
    trainer.saver.finish()
    saved = torch.load(tmp_path / "last.pth", weights_only=True)
    assert saved["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize("passes", [1, 2])
def test_steps_that_are_not_finite_can_be_skipped(tmp_path, passes):
    overrides = ["train.on_nonfinite=skip", f"train.acc_grad={passes}"]
    overrides += ["model.decoder.z_L_prior.t_sample=loss_aware"]
    trainer = make_trainer(tmp_path, *overrides)
    first = trainer.model.encoder.stem
    spoil(first, math.nan, steps={2 * passes, 7 * passes, 8 * passes})
    trainer.fit()
    assert trainer.progress.step == 15
    assert [row["train/skipped_steps"] for row in rows(tmp_path)] == [1, 3, 3]
    assert all(math.isfinite(value) for row in rows(tmp_path) for value in row.values())
    assert all(w.isfinite().all() for w in weights(trainer))


def test_nothing_but_steps_that_are_not_finite_stop_the_run(tmp_path):
    overrides = ["train.on_nonfinite=skip", "train.max_skipped_steps=7"]
    trainer = make_trainer(tmp_path, *overrides)
    spoil(trainer.model.decoder.head[-1], math.nan, steps=range(100))
    with pytest.raises(TrainingStopped, match=r"step 7: 7 steps .* first in decoder\.head"):
        trainer.fit()
    (row,) = rows(tmp_path)  # an epoch without a step has no means, rather than zeros
    assert "train/loss" not in row and row["train/skipped_steps"] == 5


def test_an_infinite_gradient_is_skipped_where_steps_may_be(tmp_path):
    trainer = make_trainer(tmp_path, "train.grad_skip_thr=100", "train.max_epochs=1")
    trainer.model.encoder.stem.bias.register_hook(lambda g: g.abs() * math.inf)
    trainer.fit()
    assert trainer.progress.skipped == 5


def make_ahead(folder, *overrides, log_every=4):
    """Two trainers alike, of which the second runs ahead."""
    made = []
    for name in ("waiting", "ahead"):
        (folder / name).mkdir(exist_ok=True)
        every = f"train.log_every={log_every}"
        made.append(make_trainer(folder / name, every, *overrides))
    made[1].ahead = True  # as on a GPU
    return made


def assert_same(waiting, ahead):
    """Weights, the optimiser's moments, counts and metrics, to the last bit."""
    states = [snapshot(trainer.state()) for trainer in (waiting, ahead)]
    for state in states:
        state["progress"].pop("seconds")
    flat = [tree_flatten(state)[0] for state in states]
    for a, b in zip(*flat, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    folders = [trainer.tracker.folder for trainer in (waiting, ahead)]
    assert rows(folders[0]) == rows(folders[1])


class NothingRead(TorchDispatchMode):
    """Within it, reading a number from a tensor is an error."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "masked_select"), name
        return func(*args, **(kwargs or {}))


def test_a_step_ahead_reads_nothing(tmp_path):
    _, trainer = make_ahead(tmp_path, "train.grad_skip_thr=100", log_every=100)
    for _, passes in zip(range(2), trainer.batches.epoch(0), strict=False):
        with NothingRead():
            trainer._step_ahead(passes, 1.0)
    assert len(trainer.unread) == 2 and not trainer.progress.sums


def test_running_ahead_changes_nothing(tmp_path):
    overrides = ["train.acc_grad=2", "model.decoder.z_L_prior.t_sample=loss_aware"]
    overrides += ["train.checkpoint_every=4 steps"]
    trainers = make_ahead(tmp_path, *overrides, log_every=3)
    saved = []
    for trainer in trainers:
        saved.append([])
        put = trainer.saver.put

        def noted(names, state, put=put, steps=saved[-1]):
            steps.append(state["progress"]["step"])
            put(names, state)

        trainer.saver.put = noted
        trainer.fit()
    assert_same(*trainers)
    assert saved[0] == saved[1] and {4, 8, 12} < set(saved[0])


def test_steps_that_may_not_be_taken_are_found_by_running_ahead_too(tmp_path):
    overrides = ["train.on_nonfinite=skip", "model.decoder.z_L_prior.t_sample=loss_aware"]
    trainers = make_ahead(tmp_path, *overrides, "train.grad_skip_thr=1e4")
    for trainer in trainers:
        bad = {2: math.nan, 7: 1e9, 8: math.inf}  # by what the gradient is multiplied
        trainer.model.encoder.stem.bias.register_hook(
            lambda g, t=trainer, bad=bad: g.abs() * bad.get(t.progress.step + 1, 1.0)
        )
        trainer.fit()
    assert trainers[0].progress.skipped == 3
    assert_same(*trainers)


def test_what_stops_a_run_is_told_when_running_ahead_too(tmp_path):
    told = []
    trainers = make_ahead(tmp_path)
    for trainer in trainers:
        layer = trainer.model.get_submodule("decoder.blocks.2.posterior_net.2")
        layer.register_forward_hook(
            lambda m, i, output, t=trainer: output * math.nan if t.progress.step == 6 else output
        )
        with pytest.raises(TrainingStopped) as stopped:
            trainer.fit()
        told.append(str(stopped.value).partition("; the last good")[0])
    assert told[0] == told[1] and "step 7: the loss is nan, first in decoder.blocks.2" in told[0]
    assert_same(*trainers)


def test_a_stop_is_heard_at_the_next_reading(tmp_path):
    _, trainer = make_ahead(tmp_path)
    trainer.signals.asked = True
    with pytest.raises(Interrupted):
        trainer.fit()
    assert trainer.progress.step == 4
    saved = torch.load(tmp_path / "ahead" / "last.pth", weights_only=True)
    assert saved["progress"]["step"] == 4 and saved["progress"]["sums"][0] == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_not_waited_for_within_a_step(tmp_path):
    trainer = make_trainer(tmp_path, "train.log_every=100", device="cuda")
    assert trainer.ahead
    steps = list(trainer.batches.epoch(0))
    trainer._step_ahead(steps[0], 1.0)  # which finds algorithms
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer._step_ahead(steps[1], 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_average_is_what_gets_evaluated(tmp_path):
    trainer = make_trainer(tmp_path, "train.ema_rate=0.5", "train.max_epochs=1")
    names = [n for n, _ in trainer.model.named_parameters()]
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    history = []
    update = trainer._update

    def recorded(*args):
        norm = update(*args)
        history.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
        return norm

    trainer._update = recorded
    trainer.fit()
    assert start.keys() == history[0].keys()
    average = history[0]  # the first update copies
    for now in history[1:]:
        average = {n: 0.5 * average[n] + 0.5 * now[n] for n in names}
    for n, p in trainer.evaluated.named_parameters():
        torch.testing.assert_close(p, average[n])


def test_early_stopping(tmp_path):
    trainer = make_trainer(tmp_path, "train.early_stopping_epochs=2", "train.max_epochs=50")
    trainer.optimizer.param_groups[0]["lr"] = 0.0
    trainer.scheduler = None
    trainer.fit()
    assert len(rows(tmp_path)) == 3  # one that counts as best, two without improvement


@pytest.mark.parametrize("scheduler", ["cosine", "cyclic", "plateau", "none"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adamax"])
def test_schedulers_and_optimisers(tmp_path, scheduler, optimizer):
    choices = [f"train/scheduler={scheduler}", f"train/optimizer={optimizer}"]
    trainer = make_trainer(tmp_path, *choices, "train.max_epochs=2")
    trainer.fit()
    rates = [row["train/lr"] for row in rows(tmp_path)]
    assert trainer.optimizer.__class__.__name__.lower() == optimizer
    if scheduler in ("cosine", "cyclic"):
        assert rates[0] != trainer.optimizer.param_groups[0]["lr"]


def test_a_clock_that_jumps_does_no_harm(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("even", "jumping")]
    now = time.time()
    for folder in folders:
        folder.mkdir()
        trainer = make_trainer(folder)
        trainer.fit()
        leaps = itertools.cycle([0.0, -1e6, 1e9, now, 5.0])
        monkeypatch.setattr(time, "time", lambda leaps=leaps: next(leaps))
    assert rows(folders[0]) == rows(folders[1])


def test_mixed_precision_trains(tmp_path):
    trainer = make_trainer(tmp_path, "train.use_amp=true", "train.max_epochs=4")
    assert trainer.amp_dtype == torch.bfloat16
    trainer.fit()
    losses = [row["train/loss"] for row in rows(tmp_path)]
    assert losses[-1] < losses[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("amp", ["true", "false"])
def test_a_gpu_trains_as_the_cpu_does(tmp_path, amp):
    folders = [tmp_path / name for name in ("cpu", "cuda")]
    for folder in folders:
        folder.mkdir()
        trainer = make_trainer(folder, f"train.use_amp={amp}", device=folder.name)
        trainer.fit()
    cpu, cuda = (rows(folder) for folder in folders)
    for a, b in zip(cpu, cuda, strict=True):
        assert a["val/loss"] == pytest.approx(b["val/loss"], rel=0.02)


def test_beta_warms_up_and_validation_keeps_the_true_bound(tmp_path):
    trainer = make_trainer(tmp_path, "model.beta_start=0", "model.warmup=2")
    trainer.fit()
    found = rows(tmp_path)
    assert [row["train/beta"] for row in found] == [0, 0.5, 1]
    assert found[0]["train/loss"] * 64 * math.log(2) == pytest.approx(
        found[0]["train/reconstruction"], rel=1e-5
    )
    assert found[0]["val/nelbo"] == pytest.approx(
        found[0]["val/reconstruction"] + found[0]["val/kl"]
    )
