"""The denoiser of the diffusion prior: a small U-Net of (u_t, t) (Dhariwal & Nichol 2021).

Shapes: M = model_channels; level i has M·channel_mult[i] channels at d / 2^i.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import at_least_float32, zero_init
from model.noise import Noise
from model.part import Part

GROUPS = 16


class UNet(Part):
    """Down path, middle with self-attention, up path on [current, popped skip]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        num_res_blocks: int,
        channel_mult: Sequence[int],
        num_heads: int,
        dropout: float,
    ):
        super().__init__()
        m = model_channels
        self.model_channels = m
        self.time_embed = nn.Sequential(nn.Linear(m, m), nn.SiLU(), nn.Linear(m, m))
        channels = m * channel_mult[0]
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1)
        skips = [channels]
        self.down = nn.ModuleList()
        for level, mult in enumerate(channel_mult):
            if level > 0:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
            for _ in range(num_res_blocks):
                self.down.append(TimeBlock(channels, m * mult, m, dropout))
                channels = m * mult
                skips.append(channels)
        self.middle = nn.ModuleList(
            [
                TimeBlock(channels, channels, m, dropout),
                SelfAttention(channels, num_heads),
                TimeBlock(channels, channels, m, dropout),
            ]
        )
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for _ in range(num_res_blocks + 1):
                self.up.append(TimeBlock(channels + skips.pop(), m * mult, m, dropout))
                channels = m * mult
            if level > 0:
                self.up.append(nn.Conv2d(channels, channels, 3, padding=1))
        out = zero_init(nn.Conv2d(channels, out_channels, 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), out)

    @classmethod
    def check_arguments(
        cls,
        size: int,
        *,
        model_channels: int,
        channel_mult: Sequence[int],
        num_heads: int,
        **others: Any,
    ) -> None:
        """The group norms, the heads and the halvings divide what they must."""
        for mult in channel_mult:
            channels = model_channels * mult
            if channels % GROUPS:
                raise ValueError(
                    f"model_channels={model_channels} times {mult} is no multiple of {GROUPS}, "
                    f"which its group norms need: use a multiple of {GROUPS}."
                )
        if channels % num_heads:
            raise ValueError(
                f"num_heads={num_heads} does not divide its {channels} channels: use a divisor."
            )
        halvings = len(channel_mult) - 1
        if size % 2**halvings:
            raise ValueError(
                f"channel_mult={list(channel_mult)} halves the top latent {halvings} times, which "
                f"its {size} elements a side don't allow: use {most_levels(size)} level(s) or "
                "fewer."
            )
        if size == 2**halvings and channels == GROUPS:
            raise ValueError(
                f"model_channels={model_channels} leaves each group norm a single value where "
                f"channel_mult={list(channel_mult)} has come down to 1×1: use a multiple of "
                f"{2 * GROUPS}, or fewer levels."
            )

    @classmethod
    def fewest_parameters(
        cls, *, model_channels: int, channel_mult: Sequence[int], num_res_blocks: int, **others: Any
    ) -> int:
        """The two 3×3 convolutions of the residual blocks at the widest level."""
        widest = model_channels * max(channel_mult)
        return 18 * widest**2 * num_res_blocks

    def forward(self, u: Tensor, t: Tensor, noise: Noise) -> Tensor:
        """u (B, C, d, d), t (B,) or (1,) in 0 … T−1 -> (B, out_channels, d, d).

        noise drives dropout.
        """
        embedding = F.silu(self.time_embed(timestep_embedding(t, self.model_channels, u.dtype)))
        h = self.stem(u)
        skips = [h]
        for layer in self.down:
            h = layer(h, embedding, noise) if isinstance(layer, TimeBlock) else layer(h)
            skips.append(h)
        first, attention, last = self.middle
        h = last(attention(first(h, embedding, noise)), embedding, noise)
        for layer in self.up:
            if isinstance(layer, TimeBlock):
                h = layer(torch.cat([h, skips.pop()], 1), embedding, noise)
            else:
                h = layer(F.interpolate(h, scale_factor=2, mode="nearest"))
        return self.out(h)


class TimeBlock(nn.Module):
    """Residual block whose second normalisation is scaled and shifted by the time embedding."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float):
        super().__init__()
        self.norm_in = nn.GroupNorm(GROUPS, in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulate = nn.Linear(embedding, 2 * out_channels)
        self.norm_out = nn.GroupNorm(GROUPS, out_channels)
        self.conv_out = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.dropout = dropout
        self.skip = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor, noise: Noise) -> Tensor:
        """x (B, in, d, d), embedding (B, M) or (1, M) after SiLU -> (B, out, d, d)."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulate(embedding)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm_out(h) * (1.0 + scale) + shift)
        if self.training and self.dropout > 0:
            h = noise.dropout(h, self.dropout)
        return self.skip(x) + self.conv_out(h)


class SelfAttention(nn.Module):
    """Attention over the d·d positions, heads split before q, k and v; residual."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, d, d) -> (B, C, d, d)."""
        qkv = self.qkv(self.norm(x).flatten(2))  # (B, 3C, d²)
        heads = qkv.unflatten(1, (self.num_heads, -1)).transpose(2, 3)  # (B, heads, d², 3ch)
        heads = heads.contiguous()  # else its fused kernels don't take them
        attended = self._attention(heads)  # (B, heads, d², ch)
        return x + self.out(attended.transpose(2, 3).flatten(1, 2)).view_as(x)

    @staticmethod
    def _attention(heads: Tensor) -> Tensor:
        """(B, heads, d², 3ch) -> (B, heads, d², ch).

        On a CPU in float32 at least: in bfloat16 its backward pass takes ten times as long there.
        """
        if heads.device.type != "cpu":
            return F.scaled_dot_product_attention(*heads.chunk(3, dim=3))
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(*at_least_float32(heads).chunk(3, dim=3))


def most_levels(size: int) -> int:
    """The most levels that a U-Net can have on maps of height and width `size`."""
    levels = 1
    while size % 2**levels == 0:
        levels += 1
    return levels


def timestep_embedding(t: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """[cos(t·f_i), sin(t·f_i)], f_i = 10000^(−i/(size/2)): t (B,) -> (B, size)."""
    index = torch.arange(size // 2, device=t.device, dtype=torch.float32)
    angle = t[:, None].float() * torch.exp(-math.log(10000.0) * index / (size // 2))
    return torch.cat([angle.cos(), angle.sin()], dim=1).to(dtype)
