"""Training: accumulated gradients, skipped steps, averages, and stops that cost nothing."""

import itertools
import math
import time
from functools import partial

import pytest
import torch

from datasets.loaders import Batch
from tests.evaluation.test_collapse import collapse
from tests.training.trainers import make_trainer, rows, weights
from utils.runs.background import snapshot
from utils.runs.signals import Interrupted
from utils.training.stopping import TrainingStopped


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


def test_a_run_stopped_at_any_step_ends_as_one_that_was_not(tmp_path):
    extra = ["train.ema_rate=0.9", "model.decoder.z_L_prior.t_sample=loss_aware"]
    (tmp_path / "whole").mkdir()
    whole = make_trainer(tmp_path / "whole", *extra)
    whole.fit()
    for stop_at in (1, 5, 7, 10):
        folder = tmp_path / f"stopped at {stop_at}"
        folder.mkdir()
        stopped = make_trainer(folder, *extra)
        stopped.train_step = stopping(stopped, stop_at)
        with pytest.raises(Interrupted):
            stopped.fit()
        assert stopped.progress.step == stop_at
        continued = make_trainer(folder, *extra)
        continued.restore(torch.load(folder / "last.pth", weights_only=True))
        continued.fit()
        assert all(map(torch.equal, weights(whole), weights(continued)))
        averaged = [t.state.ema.module.state_dict().values() for t in (whole, continued)]
        assert all(map(torch.equal, *averaged))
        assert rows(tmp_path / "whole") == rows(folder)


def stopping(trainer, step):
    """The trainer's step, which asks it to stop after that many."""
    take = trainer.train_step

    def counted(*args):
        trainer.signals.stop_requested = trainer.progress.step + 1 >= step
        return take(*args)

    return counted


def test_an_epoch_whose_validation_is_done_again_is_recorded_once(tmp_path):
    """Killed between the epoch's row and its checkpoint, with one of its last step on the disk."""
    trainer = make_trainer(tmp_path, "train.checkpoint_every=5 steps")
    save = trainer.checkpointer.save

    def killed(*names, **kwargs):
        if trainer.progress.batch == 0 and trainer.progress.epoch == 2:
            trainer.checkpointer.saver.finish()
            raise KeyboardInterrupt
        save(*names, **kwargs)

    trainer.checkpointer.save = killed
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
        for micro_batches in trainer.batches.epoch(0):
            trainer.train_step([Batch(b.x.double(), b.ids) for b in micro_batches], 1.0)
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
    for _, micro_batches in zip(range(2), undisturbed.batches.epoch(0), strict=False):
        undisturbed.train_step(micro_batches, 1.0)
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
    step = trainer.state.optimizer.step

    def broken(*args, **kwargs):
        step(*args, **kwargs)
        if trainer.progress.step == 2:
            with torch.no_grad():
                trainer.model.encoder.stem.bias[0] = math.nan

    trainer.state.optimizer.step = broken
    with pytest.raises(TrainingStopped, match=r"weights are not finite, first encoder\.stem\.bias"):
        trainer.fit()
    trainer.checkpointer.saver.finish()
    saved = torch.load(tmp_path / "last.pth", weights_only=True)
    assert saved["progress"]["step"] == 2
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_steps_that_are_not_finite_can_be_skipped(tmp_path, micro_batches):
    overrides = ["train.on_nonfinite=skip", f"train.acc_grad={micro_batches}"]
    overrides += ["model.decoder.z_L_prior.t_sample=loss_aware"]
    trainer = make_trainer(tmp_path, *overrides)
    first = trainer.model.encoder.stem
    spoil(first, math.nan, steps={n * micro_batches for n in (2, 7, 8)})
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


def test_a_step_that_the_loss_scaler_leaves_out_moves_nothing(tmp_path):
    """Neither weights and their average, nor the diffusion's running mean of each t's loss."""
    overrides = ["train.ema_rate=0.9", "model.decoder.z_L_prior.t_sample=loss_aware"]
    trainer = make_trainer(tmp_path, *overrides)
    state = trainer.state
    state.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.model.encoder.stem.bias.register_hook(
        lambda g: g * math.inf if trainer.progress.step == 2 else g
    )
    moved, scales = [], []
    for micro_batches in trainer.batches.epoch(0):
        before = snapshot([*weights(trainer), *state.ema.state_dict().values()])
        trainer.train_step(micro_batches, 1.0)
        after = [*weights(trainer), *state.ema.state_dict().values()]
        moved.append(not all(map(torch.equal, before, after)))
        scales.append(state.scaler.get_scale())
    assert moved == [True, True, False, True, True] and scales == [8, 8, 4, 4, 4]
    assert state.ema.n_averaged == trainer.progress.sums[0] == 4
    assert trainer.progress.skipped == 0


def test_the_average_is_what_gets_evaluated(tmp_path):
    trainer = make_trainer(tmp_path, "train.ema_rate=0.5", "train.max_epochs=1")
    names = [n for n, _ in trainer.model.named_parameters()]
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    history = []
    step = trainer.train_step

    def recorded(*args):
        requests = step(*args)
        history.append({n: p.detach().clone() for n, p in trainer.model.named_parameters()})
        return requests

    trainer.train_step = recorded
    trainer.fit()
    assert start.keys() == history[0].keys()
    average = history[0]  # the first update copies
    for now in history[1:]:
        average = {n: 0.5 * average[n] + 0.5 * now[n] for n in names}
    for n, p in trainer.state.evaluation_model.named_parameters():
        torch.testing.assert_close(p, average[n])


def test_early_stopping(tmp_path):
    trainer = make_trainer(tmp_path, "train.early_stopping_epochs=2", "train.max_epochs=50")
    trainer.state.optimizer.param_groups[0]["lr"] = 0.0
    trainer.state.scheduler = None
    trainer.fit()
    assert len(rows(tmp_path)) == 3  # one that counts as best, two without improvement


@pytest.mark.parametrize("scheduler", ["cosine", "cyclic", "plateau", "none"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adamax"])
def test_schedulers_and_optimisers(tmp_path, scheduler, optimizer):
    choices = [f"train/scheduler={scheduler}", f"train/optimizer={optimizer}"]
    trainer = make_trainer(tmp_path, *choices, "train.max_epochs=2")
    step, used = trainer.train_step, []

    def noted(*args):
        used.append(trainer.state.optimizer.param_groups[0]["lr"])
        return step(*args)

    trainer.train_step = noted
    trainer.fit()
    assert trainer.state.optimizer.__class__.__name__.lower() == optimizer
    rates = [row["train/lr"] for row in rows(tmp_path)]
    assert rates == used[::5] == used[4::5]  # five steps an epoch
    if scheduler in ("cosine", "cyclic"):
        assert rates[0] != rates[1]


def test_validation_draws_the_same_in_every_run(tmp_path):
    """It decides which checkpoint is the best, and task.noise_seed names no other run."""
    first, second, third = (
        make_trainer(tmp_path, f"train.seed={seed}", f"task.noise_seed={noise}")
        for seed, noise in ((0, 0), (1, 0), (0, 1))
    )
    found = []
    for trainer in (first, second, third):
        trainer.model.load_state_dict(first.model.state_dict())
        found.append(trainer.validate().nelbo)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_an_epoch_counts_no_collapsed_unit_as_active(tmp_path):
    trainer = make_trainer(tmp_path, "train.max_epochs=1")
    trainer.validate = lambda: collapse(lambda x: [torch.randn(len(x), 400)], 1, 500, samples=2)
    trainer.fit()
    (row,) = rows(tmp_path)
    assert row["val/active_units"] == row["collapse/active_units_0"] == 0


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
    assert trainer.state.amp_dtype == torch.bfloat16
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


@pytest.mark.parametrize("lasting", [False, True])
def test_the_end_waits_for_checkpoints_that_could_not_be_written(tmp_path, lasting):
    """What is scored then must be the best model, though train.on_save_error=continue."""
    trainer = make_trainer(tmp_path, "train.on_save_error=continue")
    write, failed = trainer.checkpointer.saver.write, []

    def full_at_the_end(name, state):
        if state["progress"]["epoch"] == 3 and (lasting or not failed):
            failed.append(name)
            raise OSError(28, "No space left on device")
        write(name, state)

    trainer.checkpointer.saver.write = full_at_the_end
    if lasting:
        with pytest.raises(TrainingStopped, match=r"come to its end, but the checkpoint .* mend"):
            trainer.fit()
        return
    trainer.fit()
    assert failed
    assert torch.load(tmp_path / "last.pth", weights_only=True)["progress"]["epoch"] == 3
