"""The benchmark's yardstick: the convolutions of a training step."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import convolutions, step
from benchmarks.measure import Subject
from model.noise import Noise
from tests.conftest import shrunk


def test_the_convolutions_that_are_timed_are_those_of_a_step(monkeypatch):
    """All of them: they do the work that a forward pass counts, in the same memory formats."""
    overrides = ["experiment=digits_dct_ladder", *shrunk("digits_dct_ladder")]
    subject = Subject.create(overrides, torch.device("cpu"), 1)
    kinds = convolutions.convolutions(subject)
    x = subject.evaluation_batches(4).examples(4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        subject.model(x, noise=Noise.keyed(torch.arange(4), 0))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    monkeypatch.setattr(convolutions.Convolution, "seconds", lambda kind: 3.0)
    assert sum(kind.count * kind.rate() for kind in kinds) == counted
    assert convolutions.seconds_of_all(kinds) == 3.0 * sum(kind.count for kind in kinds)
    assert 10 < len(kinds) < sum(kind.count for kind in kinds)
    wide = convolutions.fastest(kinds)
    assert wide.module.kernel_size == (3, 3) and wide.rate() == max(
        k.rate() for k in kinds if k.module.kernel_size == (3, 3)
    )
    assert wide.x.is_contiguous(memory_format=torch.channels_last) and wide.x.requires_grad


def test_a_convolution_is_timed_forward_and_backward(monkeypatch):
    monkeypatch.setattr(convolutions, "AT_LEAST", 0.001)
    wide, thin = (
        convolutions.Convolution(torch.nn.Conv2d(c, c, 3, padding=1), torch.rand(8, c, 16, 16))
        for c in (64, 4)
    )
    assert wide.seconds() > thin.seconds() > 0
    wide.x.requires_grad_()
    wide.module.register_forward_hook(lambda *_: calls.append("forward"))
    wide.module.weight.register_hook(lambda _: calls.append("backward"))
    calls = []
    wide.seconds()
    assert calls.count("forward") - 1 == calls.count("backward") > 0


def test_the_benchmarks_trainer_trains(tmp_path):
    overrides = ["experiment=digits_dct_ladder", *shrunk("digits_dct_ladder")]
    subject = Subject.create(overrides, torch.device("cpu"), 2)
    trainer = step.make_trainer(subject, tmp_path)
    step.train_epoch(trainer)
    assert trainer.progress.step == 2
