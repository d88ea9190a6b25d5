"""Training: accumulated gradients, skipped steps, averages, and stops that cost nothing."""

import json
import math
from functools import partial

import pytest
import torch

from datasets.loaders import EvaluationBatches, TrainBatches
from tests.conftest import compose, shrunk
from utils import build
from utils.terminal import Terminal
from utils.tracking import LocalSink, Tracker
from utils.trainer import Interrupted, Trainer, TrainingStopped


def make_trainer(folder, *overrides, experiment="digits_dct_ladder", optimizer=None, device="cpu"):
    """A trainer over 40 small images whose checkpoints go to `folder`."""
    base = ["dataset.data_module.batch_size=8", "train.max_epochs=3", "train.grad_skip_thr=0"]
    settings = compose(experiment, *shrunk(experiment), *base, *overrides)
    torch.manual_seed(settings["train"]["seed"])
    model = build.build_model(settings).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 17, (56, 1, 8, 8), generator=generator).to(device, torch.uint8)
    model.fit_context(images[:40], 16)
    batches = TrainBatches(
        images[:40],
        16,
        settings["dataset"]["data_module"]["batch_size"],
        settings["train"]["seed"],
        passes=settings["train"]["acc_grad"],
    )

    def save(name, state):
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
        save,
        lambda model, epoch, step: None,
        Tracker(folder, [LocalSink(folder / "metrics.jsonl")]),
        Terminal(shown=False),
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
        step(*args)
        stopped.stop_asked = stopped.progress.step >= stop_at

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
    with pytest.raises(TrainingStopped, match=r"step 7: 7 steps in a row.*grad_skip_thr=1e-06"):
        trainer.fit()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_before_the_weights_change(tmp_path, value):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.decoder.head[-1].bias.fill_(value)
    before = [w.clone() for w in weights(trainer)]
    with pytest.raises(TrainingStopped, match=r"step 1: the loss is .*KL per layer.*last\.pth"):
        trainer.fit()
    for a, b in zip(before, weights(trainer), strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_gradient_stops_before_the_weights_change(tmp_path, value):
    trainer = make_trainer(tmp_path)
    before = [w.clone() for w in weights(trainer)]
    trainer.model.encoder.stem.bias.register_hook(lambda g: g.abs() * value)
    with pytest.raises(TrainingStopped, match=f"the gradient's norm is {value}"):
        trainer.fit()
    assert all(map(torch.equal, before, weights(trainer)))


def test_an_infinite_gradient_is_skipped_where_steps_may_be(tmp_path):
    trainer = make_trainer(tmp_path, "train.grad_skip_thr=100", "train.max_epochs=1")
    trainer.model.encoder.stem.bias.register_hook(lambda g: g.abs() * math.inf)
    trainer.fit()
    assert trainer.progress.skipped == 5


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
