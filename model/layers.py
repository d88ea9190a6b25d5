"""Residual blocks of the encoder, decoder and prior nets (Appendix of arXiv 2302.09976).

Shapes: (B, channels, h, w) in and out; a block changes channels, never the resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from model.depthwise import DepthwiseConv2d

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU, "elu": nn.ELU}


@dataclass(frozen=True)
class BlockStyle:
    """Choices that all residual blocks share; their hidden channels are int(in · block_ch_mult)."""

    block_ch_mult: float = 1.0
    activation: str = "silu"
    weight_norm: bool = False
    batch_norm: bool = False

    def hidden(self, channels: int) -> int:
        """Hidden channels of a block with `channels` inputs."""
        return int(channels * self.block_ch_mult)

    def act(self) -> nn.Module:
        """A fresh activation module."""
        return ACTIVATIONS[self.activation]()

    def norm(self, channels: int) -> list[nn.Module]:
        """BatchNorm (momentum 0.05) in a list, or an empty list without batch_norm."""
        return [nn.BatchNorm2d(channels, momentum=0.05)] if self.batch_norm else []

    def conv(self, inp: int, out: int, kernel: int) -> nn.Module:
        """A same-size convolution inside a block, weight-normalised if `weight_norm` is set."""
        return self._normed(nn.Conv2d(inp, out, kernel, padding=kernel // 2))

    def depthwise(self, channels: int, kernel: int) -> nn.Module:
        """The same, of each channel alone."""
        return self._normed(DepthwiseConv2d(channels, kernel))

    def _normed(self, layer: nn.Conv2d) -> nn.Module:
        return weight_norm(layer) if self.weight_norm else layer


class CheckpointedModule(nn.Module):
    """A function `compute` of x, under activation checkpointing where `recompute` is set.

    Training then keeps x alone, and the backward pass computes the activations inside again. So
    `compute` must draw no random numbers and update no statistics (batch norm).
    """

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) -> (B, out, h, w)."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.compute, x, use_reentrant=False, preserve_rng_state=False)
        return self.compute(x)


class Net(CheckpointedModule, nn.Sequential):
    """A sequence of layers that can be checkpointed as one."""

    def compute(self, x: Tensor) -> Tensor:
        """The layers' composition."""
        return nn.Sequential.forward(self, x)


class ResidualBlock(CheckpointedModule):
    """skip(x) + β·net(x) with β = 0 at the start, so that every block starts as its skip.

    Under autocast β takes the type that the convolutions compute in: a float32 one would make the
    maps from block to block float32, which doubles what a step moves.
    """

    def __init__(self, net: nn.Sequential, in_channels: int, out_channels: int):
        super().__init__()
        self.net = net
        self.beta = nn.Parameter(torch.zeros(1))
        self.skip = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def compute(self, x: Tensor) -> Tensor:
        """skip(x) + β·net(x)."""
        change = self.net(x)
        return torch.addcmul(self.skip(x), self.beta.to(change.dtype), change)


def encoder_block(in_channels: int, out_channels: int, style: BlockStyle) -> ResidualBlock:
    """Pre-activation: [act, 1×1], 2 × [act, 3×3], [act, 1×1]."""
    hidden = style.hidden(in_channels)
    layers = []
    for inp, out, kernel in (
        (in_channels, hidden, 1),
        (hidden, hidden, 3),
        (hidden, hidden, 3),
        (hidden, out_channels, 1),
    ):
        layers += [*style.norm(inp), style.act(), style.conv(inp, out, kernel)]
    return ResidualBlock(nn.Sequential(*layers), in_channels, out_channels)


def decoder_net(in_channels: int, out_channels: int, style: BlockStyle) -> Net:
    """Post-activation: [1×1, act], 2 × [3×3, act], 1×1; the last one never weight-normalised."""
    hidden = style.hidden(in_channels)
    layers = [*style.norm(in_channels)]
    for inp, kernel in ((in_channels, 1), (hidden, 3), (hidden, 3)):
        layers += [style.conv(inp, hidden, kernel), *style.norm(hidden), style.act()]
    layers += [nn.Conv2d(hidden, out_channels, 1), *style.norm(out_channels)]
    return Net(*layers)


def decoder_block(in_channels: int, out_channels: int, style: BlockStyle) -> ResidualBlock:
    """`decoder_net` as a residual block."""
    net = nn.Sequential(*decoder_net(in_channels, out_channels, style))
    return ResidualBlock(net, in_channels, out_channels)


def prior_net(in_channels: int, out_channels: int, style: BlockStyle) -> Net:
    """[1×1, act], [depthwise 5×5, act], 1×1 that starts at zero; without residual."""
    hidden = style.hidden(in_channels)
    net = Net(
        *style.norm(in_channels),
        style.conv(in_channels, hidden, 1),
        *style.norm(hidden),
        style.act(),
        style.depthwise(hidden, 5),
        *style.norm(hidden),
        style.act(),
        nn.Conv2d(hidden, out_channels, 1),
        *style.norm(out_channels),
    )
    zero_init(last_conv(net))
    return net


def last_conv(net: nn.Sequential) -> nn.Conv2d:
    """The last convolution of a net (a BatchNorm may follow it)."""
    return [layer for layer in net if isinstance(layer, nn.Conv2d)][-1]


def zero_init(layer: nn.Module) -> nn.Module:
    """Zero weight and bias, in place."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, h, w); a single channel gets the strides of channels-last memory format."""
    return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2) if x.shape[1] == 1 else x


def split_channels(x: Tensor, channels: Sequence[int]) -> list[Tensor]:
    """x (B, C, h, w) in parts of so many channels; its gradient is put together channels last.

    `x.split(channels, 1)` makes it channel by channel, and each convolution that such a gradient
    comes to has to turn it around.
    """
    parts = x.permute(0, 2, 3, 1).split(list(channels), dim=3)
    return [part.permute(0, 3, 1, 2) for part in parts]


def at_least_float32(x: Tensor) -> Tensor:
    """x, in float32 if it is in half precision: bounds are computed in float32 or float64."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
