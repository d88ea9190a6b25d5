"""Depthwise convolutions: values and gradients are those of the plain form."""

import copy
import itertools

import pytest
import torch
from torch import nn

from model.depthwise import DepthwiseConv2d
from tests.conftest import compose, shrunk
from utils.settings import build


def gradients(layer: nn.Module, x: torch.Tensor, half: bool = False) -> list[torch.Tensor]:
    """Of x, weight and bias, and before them the output."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = layer(x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], direction)]


def plain(layer: DepthwiseConv2d) -> nn.Conv2d:
    """PyTorch's own, with the same weights."""
    channels, kernel = layer.out_channels, layer.kernel_size[0]
    same = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    same.load_state_dict(layer.state_dict())
    return same.to(layer.weight.dtype)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9])
def test_values_and_gradients_are_those_of_the_plain_convolution(kernel):
    """In float64, for every size down to less than the kernel, in both memory formats."""
    for channels, size in itertools.product((1, 5, 16), (1, 2, 3, 8)):
        x = torch.randn(3, channels, size, size, dtype=torch.float64)
        layer = DepthwiseConv2d(channels, kernel).double()
        for layout in (torch.channels_last, torch.contiguous_format):
            given = x.contiguous(memory_format=layout)
            for found, expected in zip(
                gradients(layer, given), gradients(plain(layer), given), strict=True
            ):
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("half", [False, True])
def test_on_this_processor_they_are_as_exact_as_the_plain_ones(half):
    """Float32, and bfloat16 by autocast, on maps of MNIST's size, against float64."""
    layer = DepthwiseConv2d(32, 5).to(memory_format=torch.channels_last)
    x = torch.randn(16, 32, 14, 14).to(memory_format=torch.channels_last)
    found, other = gradients(layer, x, half), gradients(plain(layer), x, half)
    exact = gradients(copy.deepcopy(layer).double(), x.double())
    for a, b, c in zip(found, other, exact, strict=True):
        assert a.dtype == b.dtype
        error, accepted = ((g.double() - c).norm() / c.norm() for g in (a, b))
        assert error <= 1.5 * accepted + 1e-6


def test_prior_nets_have_them():
    """One in each, whether weights are normalised or not."""
    for overrides in ([], ["model.weight_norm=true"]):
        settings = compose("mnist_dct_ladder", *shrunk("mnist_dct_ladder"), *overrides)
        blocks = build.build_model(settings).decoder.blocks
        for block in blocks:
            wide = [m for m in block.prior.modules() if isinstance(m, DepthwiseConv2d)]
            assert len(wide) == 1 and wide[0].kernel_size == (5, 5)
