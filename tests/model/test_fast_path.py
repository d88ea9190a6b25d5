"""What makes training fast or small changes nothing: against plain float64, and a stored curve."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from datasets.loaders import TrainBatches
from model.layers import CheckpointedModule, ResidualBlock, split_channels
from model.noise import Noise
from model.objective import LossModule
from model.unet import SelfAttention, TimeBlock
from tests.conftest import compose, randomised, shrunk
from tests.training.trainers import make_trainer
from utils.settings import build, composition
from utils.settings.images import load_images
from utils.training import memory

EXPERIMENTS = composition.experiments()
CURVE = Path(__file__).parent / "loss_curve.json"
STEPS = 20


def images(settings: dict, count: int) -> torch.Tensor:
    """Random grey values (count, C, H, W) that are smooth, as pictures are."""
    dataset = settings.dataset
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, dataset.channels, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=dataset.image_size, mode="bicubic")
    return (smooth.clamp(0, 1) * (dataset.levels - 1)).round().to(torch.uint8)


def losses(settings: dict, dtype: torch.dtype, fast: bool, recompute: bool = False):
    """(loss, reconstruction, kl, gradients by name) of a training pass over four images."""
    torch.manual_seed(0)
    model = randomised(build.build_model(settings), 0.05)
    data = images(settings, 4)
    model.fit_context(data, settings.dataset.levels - 1)
    model.recompute(recompute)
    layout = torch.channels_last if fast else torch.contiguous_format
    model = model.to_device("cpu", dtype) if fast else model.to(dtype)
    model.train()
    (passes,) = TrainBatches(data, settings.dataset.levels - 1, 4, 0).epoch(0)
    (batch,) = passes
    x = batch.x.to(dtype).contiguous(memory_format=layout)
    keys = Noise.keyed(batch.ids, 0).keys
    loss, reconstruction, kl = LossModule(model, build.build_objective(settings))(x, keys, 1.0)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), reconstruction.detach(), kl.detach(), gradients


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_training_computes_what_plain_float64_does(experiment):
    """Float32, channels last, against float64 in the default layout: loss, KL, gradients."""
    settings = compose(experiment, *shrunk(experiment))
    *fast, fast_gradients = losses(settings, torch.float32, fast=True)
    *plain, plain_gradients = losses(settings, torch.float64, fast=False)
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    assert fast_gradients.keys() == plain_gradients.keys()
    whole = torch.cat([g.flatten() for g in plain_gradients.values()]).norm()
    for name, gradient in plain_gradients.items():
        error = (fast_gradients[name].double() - gradient).norm()
        assert error <= 1e-4 * gradient.norm() + 1e-6 * whole, name


@pytest.mark.parametrize("experiment", ["cifar_dct_ladder", "mnist_dct_ladder"])
def test_maps_lie_as_their_convolutions_are_fast(experiment):
    """On a CPU: the ladder's channels last, the diffusion's channel by channel."""
    settings, layouts = compose(experiment, *shrunk(experiment)), {ResidualBlock: [], TimeBlock: []}
    model = build.build_model(settings).to_device("cpu")
    for module in model.modules():
        if type(module) in layouts:
            module.register_forward_hook(
                lambda module, inputs, h: layouts[type(module)].append(
                    h.is_contiguous(memory_format=torch.channels_last) - h.is_contiguous()
                )
            )
    (passes,) = TrainBatches(images(settings, 4), settings.dataset.levels - 1, 4, 0).epoch(0)
    model(passes[0].x)
    assert set(layouts[ResidualBlock]) - {0} == {1} and set(layouts[TimeBlock]) - {0} == {-1}


@pytest.mark.parametrize("experiment", ["cifar_dct_ladder", "mnist_ladder"])
def test_recomputed_activations_change_nothing(experiment):
    """Dropout in the prior included."""
    settings = compose(experiment, *shrunk(experiment))
    *kept, kept_gradients = losses(settings, torch.float64, fast=True)
    *again, again_gradients = losses(settings, torch.float64, fast=True, recompute=True)
    assert all(map(torch.equal, kept, again))
    for name, gradient in kept_gradients.items():
        torch.testing.assert_close(again_gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_recomputing_activations_saves_memory():
    sizes = []
    for on in ("false", "true"):
        settings = compose("mnist_dct_ladder", f"train.checkpoint_activations={on}")
        sizes.append(memory.estimate_memory(settings, 2)[1])
    assert sizes[1] < 0.4 * sizes[0]


def test_the_trainer_recomputes_where_asked(tmp_path):
    for on in (False, True):
        trainer = make_trainer(tmp_path, f"train.checkpoint_activations={str(on).lower()}")
        nets = [
            module for module in trainer.model.modules() if isinstance(module, CheckpointedModule)
        ]
        assert nets and all(net.recompute is on for net in nets)


def curve(settings: dict, dtype: torch.dtype = torch.float32) -> list[float]:
    """The loss of the first steps (bits/dim), as the command trains."""
    torch.manual_seed(settings.train.seed)
    splits = load_images(settings)
    model = build.build_model(settings).to_device("cpu", dtype).train()
    model.fit_context(splits.train, splits.max_value)
    optimizer, _ = build.build_optimizer(settings, model)
    module, found = LossModule(model, build.build_objective(settings)), []
    size, seed = settings.dataset.data_module.batch_size, settings.train.seed
    steps = TrainBatches(splits.train, splits.max_value, size, seed).epoch(0)
    for step, (batch,) in enumerate(itertools.islice(itertools.cycle(list(steps)), STEPS)):
        optimizer.zero_grad()
        loss, *_ = module(batch.x.to(dtype), Noise.keyed(batch.ids, seed, step).keys, 1.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.train.grad_clip)
        optimizer.step()
        found.append(loss.item())
    return found


def test_the_first_steps_lose_what_they_always_did():
    """Kernels and machines round differently, by 1e-4 after so few steps; a change is far more."""
    stored = json.loads(CURVE.read_text())
    assert curve(compose("digits_dct_ladder")) == pytest.approx(stored, rel=1e-3)


@pytest.mark.parametrize("experiment", ["digits_dct_ladder", "mnist_dct_ladder"])
def test_maps_from_block_to_block_have_the_type_that_convolutions_compute_in(experiment):
    """Under autocast; without it a block is what it says, to the last bit."""
    settings, types = compose(experiment, *shrunk(experiment)), {True: [], False: []}
    model, x = build.build_model(settings), torch.rand(2, 1, *[settings.dataset.image_size] * 2)
    randomised(model)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.register_forward_hook(
                lambda m, given, out: types[torch.is_autocast_enabled("cpu")].append(
                    (out.dtype, torch.addcmul(m.skip(given[0]), m.beta, m.net(given[0])), out)
                )
            )
    for half in (True, False):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            model(x, noise=Noise.keyed(torch.arange(2), 0))
    assert {dtype for dtype, _, _ in types[True]} == {torch.bfloat16}
    assert all(torch.equal(said, out) for _, said, out in types[False]) and types[False]


def test_the_gradient_of_a_split_is_put_together_channels_last():
    """Its values, and those of the parts, are `Tensor.split`'s, to the last bit."""
    x = torch.randn(2, 7, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    sizes, found = [1, 1, 5], []
    for split in (split_channels, lambda x, sizes: x.split(sizes, 1)):
        h = 2.0 * x
        h.register_hook(found.append)
        parts = split(h, sizes)
        found += parts
        sum((part * (1 + index) * part).sum() for index, part in enumerate(parts)).backward()
    *ours, gradient = found[: len(found) // 2]
    *plain, expected = found[len(found) // 2 :]
    assert all(map(torch.equal, ours, plain)) and torch.equal(gradient, expected)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_attention_is_computed_in_float32_on_a_cpu():
    """Where autocast would have it in bfloat16, whose backward pass is slow there."""
    layer, types = SelfAttention(32, 2), []
    torch.nn.init.normal_(layer.out.weight)
    layer.out.register_forward_pre_hook(lambda module, given: types.append(given[0].dtype))
    x = torch.randn(2, 32, 7, 7)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), exact, rtol=0.02, atol=0.02)
    assert types == [torch.float32, torch.float32]
