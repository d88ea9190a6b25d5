"""Depthwise convolutions whose weights' gradient is fast on a CPU.

PyTorch's (oneDNN's) depthwise kernel for that gradient takes up to three columns; a wider one goes
to a kernel for dense convolutions, which on 5×5 takes ten times as long, in bfloat16 twenty. Here
the columns go to the depthwise kernel three at a time. Shapes: x (B, C, h, w), weight (C, 1, k, k).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

COLUMNS = 3


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)`, kernel odd."""

    def __init__(self, channels: int, kernel: int):
        super().__init__(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return super()._conv_forward(x, weight, bias)
        if torch.is_autocast_enabled("cpu"):
            half = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(half), weight.to(half), bias.to(half)
        return _Depthwise.apply(x, weight, bias)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        edge, parts = weight.shape[-1] // 2, []
        of_x, *_ = _backward(gradient, x, weight, [edge, edge], [True, False, False])
        padded, width = F.pad(x, (edge, edge)), x.shape[-1]
        for index, columns in enumerate(weight.split(COLUMNS, dim=3)):
            start = COLUMNS * index
            read = padded[..., start : start + width + columns.shape[-1] - 1]
            parts.append(_backward(gradient, read, columns, [edge, 0], [False, True, False])[1])
        return of_x, torch.cat(parts, dim=3), gradient.sum((0, 2, 3))


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, padding: list[int], wanted: list[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, of the weight and of the bias, where wanted."""
    one, zero, groups = [1, 1], [0, 0], len(weight)
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, None, one, padding, one, False, zero, groups, wanted
    )
