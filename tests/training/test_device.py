"""Devices and waits of what runs on a GPU, shown on one that isn't there (tests/fake_gpu.py)."""

import contextlib
from unittest import mock

import pytest
import torch
from torch.utils._pytree import tree_leaves

from datasets.io.on_disk import ImagesOnDisk
from datasets.loaders import EvaluationBatches, TrainBatches
from model.depthwise import DepthwiseConv2d
from model.noise import Noise
from tests.conftest import compose, randomised, shrunk
from tests.fake_gpu import CUDA, FIRST, HOLDS, LAST, gpu
from tests.training.trainers import make_trainer, rows, weights
from utils.evaluation.bound import estimate_nll, posterior_collapse
from utils.evaluation.information import aggregate_posterior, interventions
from utils.report.pictures import draw_model, draw_traversals
from utils.runs.background import snapshot
from utils.settings.build import build_model
from utils.training.static import StaticSteps

pytestmark = pytest.mark.skipif(
    not HOLDS, reason=f"torch {torch.__version__}: tried with {FIRST} to {LAST} only"
)
AWARE = "model.decoder.z_L_prior.t_sample=loss_aware"
FEW = "model.latent_scales=[1,1]"  # an operation takes longer here than on a GPU
MODES = {
    "balanced": ["model.kl_balance=true", "model.beta_start=0.1", "model.warmup=5"],
    "average": ["train.ema_rate=0.9", "train.acc_grad=2", AWARE],
    "bfloat16": ["train.use_amp=true", "model.weight_norm=true", "model.start_scale_at_x=true"],
    "float16": ["train.use_amp=true", "train.ema_rate=0.9", "model.free_bits_thr=2"],
    "skipping": ["train.grad_skip_thr=1e-6", "train.grad_clip=0", "train.ema_rate=0.9"],
    "recomputing": ["train.checkpoint_activations=true"],
}
GENERATOR = torch.Generator().manual_seed(1)
IMAGES = torch.randint(0, 17, (8, 1, 8, 8), generator=GENERATOR).byte()


def nothing(*_) -> None:
    """A tick."""


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.arange(3),
        lambda x: torch.cat([x, torch.zeros(3)]),
        lambda x: torch.arange(3)[x.long()],
        lambda x: torch.ones(3, 3) @ x,
    ],
)
def test_tensors_of_both_devices_do_not_mix(wrong):
    with gpu(), pytest.raises(RuntimeError, match="cuda:0 and cpu"):
        wrong(torch.zeros(3, device=CUDA))


@pytest.mark.parametrize(
    ("waits", "act"),
    [
        (1, lambda x: float(x.sum())),
        (1, lambda x: bool(x.sum() > 0)),
        (1, lambda x: x.tolist()),
        (1, lambda x: x[x > 0]),
        (1, lambda x: x[[0, 2]]),
        (1, lambda x: torch.equal(x, x)),
        (1, lambda x: x.cpu()),
        (1, lambda x: torch.ones(3).to(CUDA)),
        (1, lambda x: torch.ones(3).to(CUDA, non_blocking=True)),  # not pinned
        (1, lambda x: torch.tensor(1.0, device=CUDA)),
        (0, lambda x: torch.ones(3, pin_memory=True).to(CUDA, non_blocking=True)),
        (0, lambda x: torch.ones(3, device=CUDA) + x * torch.tensor(2.0)),
        (0, lambda x: torch.where(x > 0, x, 1.0)[x.long()]),
    ],
)
def test_who_waits_is_noted(waits, act):
    with gpu() as noted:
        x = torch.zeros(3, device=CUDA)
        noted.clear()
        act(x)
        assert len(noted) == waits


def begun(folder, *overrides, **choices):
    """A trainer on the GPU after its first step, which makes the optimiser's state; the others."""
    overrides = [
        "train.log_every=100",
        "train.capture=false",
        "train.on_nonfinite=skip",
        *overrides,
    ]
    trainer = make_trainer(folder, *overrides, device=CUDA, **choices)
    steps = trainer.batches.epoch(0)
    trainer.train_step(next(steps), 1.0)
    return trainer, steps


@contextlib.contextmanager
def two_processes():
    """What this process sees of two that are joined by NCCL, except for the gradients."""
    replaced = {
        "is_initialized": lambda: True,
        "get_backend": lambda group=None: "nccl",
        "get_world_size": lambda group=None: 2,
        "all_reduce": nothing,
    }
    with contextlib.ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch(f"torch.distributed.{name}", function))
        stack.enter_context(
            mock.patch("utils.processes.collectives.wrap", lambda module, *_: module)
        )
        yield


@pytest.mark.parametrize("mode", MODES)
def test_a_step_waits_for_nothing(tmp_path, mode):
    """The losses of many are read by one wait; a step that is done again reads them by two."""
    with gpu(bfloat16=mode != "float16") as waits:
        trainer, steps = begun(tmp_path, FEW, *MODES[mode])
        assert trainer.state.amp_dtype is getattr(torch, mode, None)
        assert trainer.state.scaler.is_enabled() == (mode == "float16")
        waits.clear()
        trainer.train_step(next(steps), 1.0)
        assert waits == [] and len(trainer.deferred.pending) == 2
        trainer.deferred.flush_pending(1.0)
        done_again = 2 if mode == "skipping" else 0
        assert trainer.progress.skipped == done_again
        assert len(waits) == 1 + 2 * done_again


def test_a_step_of_several_processes_waits_for_nothing(tmp_path):
    with gpu() as waits, two_processes():
        trainer, steps = begun(tmp_path, FEW, "train.ema_rate=0.9", AWARE)
        waits.clear()
        trainer.train_step(next(steps), 1.0)
        assert waits == [] and trainer.deferred.pending


def captured_anyhow(action, warm_up, device):
    """Stands in for utils.processes.graphs.capture, whose streams need a driver."""
    warm_up()
    action()
    return action


@pytest.mark.parametrize("mode", MODES)
def test_a_static_step_waits_for_nothing(tmp_path, monkeypatch, mode):
    """Only an epoch's order and the reading of many steps' losses do."""
    monkeypatch.setattr("utils.processes.graphs.capture", captured_anyhow)
    with gpu(bfloat16=mode != "float16") as waits:
        overrides = ["train.log_every=3", "train.on_nonfinite=skip", *MODES[mode]]
        trainer = make_trainer(tmp_path, FEW, *overrides, device=CUDA)
        numbers = trainer.deferred.epoch(0)
        assert isinstance(trainer.deferred, StaticSteps)
        trainer.train_step(next(numbers), 1.0)
        waits.clear()
        trainer.train_step(next(numbers), 1.0)
        assert waits == [] and len(trainer.deferred.pending) == 2
        trainer.train_step(next(numbers), 1.0)
        done_again = 3 if mode == "skipping" else 0
        assert trainer.progress.skipped == done_again
        assert len(waits) == 1 + 2 * done_again


def test_a_captured_run_is_that_of_the_cpu(tmp_path, monkeypatch):
    """To the last bit, at a rate that float32 holds."""
    monkeypatch.setattr("utils.processes.graphs.capture", captured_anyhow)
    overrides = ["train/scheduler=none", f"train.optimizer.lr={2**-9}", "train.max_epochs=1", FEW]
    trainers = []
    for device, context in (("cpu", contextlib.nullcontext()), (CUDA, gpu())):
        with context:
            trainers.append(make_trainer(tmp_path, *overrides, device=device))
            trainers[-1].train_epoch()
    held = [[getattr(w, "held", w) for w in weights(trainer)] for trainer in trainers]
    assert all(map(torch.equal, *held))
    assert trainers[0].progress.sums == trainers[1].progress.sums


def test_a_gpu_that_captures_nothing_is_told_and_used(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("utils.terminal.Terminal.line", lambda self, text: said.append(text))
    with gpu():
        trainer = make_trainer(tmp_path, FEW, device=CUDA)
        trainer.train_epoch()
    assert trainer.progress.sums[0] == 5
    assert ["are not captured" in line for line in said] == [True]


@pytest.mark.slow
@pytest.mark.parametrize(
    "experiment", ["mnist_ladder", "mnist_dct_ladder", "cifar_ladder", "cifar_dct_ladder"]
)
def test_no_experiment_s_step_waits(tmp_path, experiment):
    with gpu() as waits:
        trainer, steps = begun(tmp_path, experiment=experiment)
        waits.clear()
        trainer.train_step(next(steps), 1.0)
        assert waits == [] and trainer.deferred.pending


def test_a_run_is_that_of_the_cpu(tmp_path, monkeypatch):
    """Epoch, validation and checkpoints, to the last bit; a step on the CPU is never deferred.

    With the same depthwise convolutions on both: a CPU's own round differently.
    """
    monkeypatch.setattr(DepthwiseConv2d, "_conv_forward", torch.nn.Conv2d._conv_forward)
    overrides = ["train.log_every=3", "train.ema_rate=0.9", "train.max_epochs=1", AWARE, FEW]
    overrides += ["train.capture=false"]
    saved, metrics = [], []
    for device, context in (("cpu", contextlib.nullcontext()), (CUDA, gpu())):
        folder = tmp_path / str(device)
        folder.mkdir()
        with context:
            trainer = make_trainer(folder, *overrides, device=device)
            assert bool(trainer.deferred) == (device == CUDA)
            trainer.fit()
        content = torch.load(folder / "last.pth", weights_only=True)
        saved.append([leaf for leaf in tree_leaves(content) if isinstance(leaf, torch.Tensor)])
        metrics.append(rows(folder))
    assert metrics[0] == metrics[1]
    assert len(saved[0]) == len(saved[1]) and all(map(torch.equal, *saved))


@pytest.mark.parametrize(("chunk", "fewest", "most"), [(2**28, 2, 2), (2**14, 8, 80)])
def test_a_checkpoint_s_copy_waits_once_for_each_type(tmp_path, monkeypatch, chunk, fewest, most):
    """float32, and int64 of the average's counter; more often only where there is a lot."""
    monkeypatch.setattr("utils.runs.background.CHUNK_BYTES", chunk)
    with gpu() as waits:
        trainer, _ = begun(tmp_path, FEW, "train.ema_rate=0.9")
        state = trainer.state.state_dict()
        waits.clear()
        copy = snapshot(state)
        assert fewest <= len(waits) <= most
    for tensor, copied in zip(tree_leaves(state), tree_leaves(copy), strict=True):
        if isinstance(tensor, torch.Tensor):
            assert type(copied) is torch.Tensor and copied.stride() == tensor.stride()
            assert torch.equal(copied, getattr(tensor, "held", tensor))
        else:
            assert copied == tensor


def test_batches_from_the_disk_keep_nobody_waiting(tmp_path):
    """After an epoch's indices have been copied."""
    (tmp_path / "images").write_bytes(IMAGES.numpy().tobytes())
    with gpu() as waits:
        images = ImagesOnDisk(tmp_path / "images", 0, tuple(IMAGES.shape)).to(CUDA)
        for batches in (TrainBatches(images, 16, 2, 0).epoch(0), EvaluationBatches(images, 16, 2)):
            iterator = iter(batches)
            next(iterator)
            waits.clear()
            assert len(list(iterator)) == 3 and waits == []


@pytest.mark.parametrize(
    "experiment",
    ["digits_dct_ladder", pytest.param("digits_ladder", marks=pytest.mark.slow)],
)
def test_evaluation_and_reports_compute_what_they_do_on_the_cpu(experiment):
    cpu, _ = evaluated(experiment, "cpu")
    with gpu() as waits:
        cuda, counts = evaluated(experiment, CUDA, waits)
    assert counts[0] == counts[1]  # whatever the number of images
    for one, other in zip(cpu, cuda, strict=True):
        torch.testing.assert_close(torch.as_tensor(other), torch.as_tensor(one))


def evaluated(experiment, device, waits=()):
    """Figures of all that evaluates a model; the waits for mutual information of 4 and 8 images."""
    torch.manual_seed(0)
    settings = compose(experiment, *shrunk(experiment), FEW)
    model = randomised(build_model(settings), 0.05).to(device)
    images = IMAGES.to(device)
    model.fit_context(images, 16)
    batches, counts = EvaluationBatches(images, 16, 8), []
    collapse = posterior_collapse(model, batches, 0, 2, nothing)
    figures = [collapse.report().nelbo, collapse.kl, collapse.layers[-1].variance]
    for estimator in ("iwae", "published"):
        figures.append(estimate_nll(model, batches, estimator, 3, 2, 2, 0, nothing)[1])
    figures += [bound.nelbo for bound in interventions(model, batches, 0, nothing).values()]
    draws = Noise.keyed(torch.arange(2, device=device), 0)
    figures.append(model.sample(2, noise=draws).cpu())
    x = batches.examples(8)
    draw_model(model, x[:2], 0)
    draw_traversals(model, x, collapse.layers)
    for count in (4, 8):
        before = len(waits)
        aggregate = aggregate_posterior(model, x[:count], 0, nothing)
        counts.append(len(waits) - before)
        figures.append(aggregate.information)
    return figures, counts
