"""Random numbers that are a function of (seed, step or sample, image), and of nothing else.

A generator with hidden state gives image 7 another draw when the batch, the chunk or the number of
processes changes. Here every row of a draw has a key of its own, and its j-th number is the j-th
output of SplitMix64 (Steele, Lea & Flood 2014) started at that key: nothing is stored, nothing is
lost when a run is interrupted, and the same image gets the same noise wherever it is computed.
"""

import math
from enum import IntEnum

import torch
from torch import Tensor

GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # SplitMix64's increment, as a signed 64-bit integer
MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
MIX_2 = 0x94D049BB133111EB - 2**64


class NoisePurpose(IntEnum):
    """What draws are for: a salt in their keys, so that no two purposes share random numbers."""

    TRAINING = 100
    POSTERIOR = 101  # passes behind the bound and the collapse metrics
    LIKELIHOOD = 103  # importance samples
    PICTURES = 104
    SAMPLES = 105  # of task=sample
    INTERVENTION = 106  # passes with some layers' latents from the prior
    AGGREGATE = 107  # posterior draws behind mutual information
    PRIOR = 108  # prior draws that these are compared with
    QUALITY = 109  # samples that FID is computed from
    CONTEXTS = 110  # of importance samples, which share them
    PATHS = 111  # of a diffusion prior, behind its density
    ENCODING = 112  # samples of task=encode
    FOREIGN = 113  # passes behind the likelihood ratios of task=ood


class Noise:
    """Draws for a batch of B rows, each row from its own stream.

    Successive calls advance all streams together, so a row's numbers depend on its key and on the
    shapes drawn before, never on the other rows.
    """

    def __init__(self, keys: Tensor):
        self.keys = keys  # (B,) int64
        self.drawn = 0

    @classmethod
    def keyed(cls, ids: Tensor, *salts: int | Tensor) -> "Noise":
        """Streams keyed by (salts, ids[i]): for example `Noise.keyed(image_ids, seed, step)`.

        A salt may be on the device of `ids`, as an int64 tensor (): the keys are the same.
        """
        key = torch.zeros((), dtype=torch.int64, device=ids.device)
        for salt in salts:
            key = _mix(key * MIX_2 + salt + GOLDEN)
        return cls(_mix(_mix(ids.long() + GOLDEN) + key))

    @classmethod
    def fresh(cls, batch: int, device: torch.device | str = "cpu") -> "Noise":
        """Streams keyed by a draw from PyTorch's global generator: `torch.manual_seed` rules."""
        seed = int(torch.randint(2**62, ()))
        return cls.keyed(torch.arange(batch, device=device), seed)

    def samples(self, first: int, count: int) -> "Noise":
        """Streams of samples first … first+count−1 of every row, sample-major: (count·B,)."""
        sample = torch.arange(first, first + count, device=self.keys.device)
        return Noise(_mix(self.keys + _mix(sample + GOLDEN)[:, None]).flatten())

    def salted(self, salt: int) -> "Noise":
        """Streams that share no number with these or with their samples."""
        return Noise(_mix(self.keys * MIX_1 + salt))

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """U[0, 1) of shape (B, *shape), on a grid of 2^-24 (float32) or 2^-53 (float64)."""
        digits = 53 if dtype == torch.float64 else 24
        bits = (self._bits(math.prod(shape)) >> (64 - digits)) & (2**digits - 1)
        return (bits.to(dtype) * 2.0**-digits).view(-1, *shape)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """N(0, 1) of shape (B, *shape), by Box and Muller's transform of two 32-bit uniforms."""
        size = math.prod(shape)
        bits = self._bits((size + 1) // 2)
        radius = (((bits >> 32) & 0xFFFFFFFF).to(dtype) + 0.5) * 2.0**-32  # (0, 1], up to 6.7 sigma
        angle = (bits & 0xFFFFFFFF).to(dtype) * (2.0 * math.pi * 2.0**-32)
        radius = (-2.0 * radius.log()).sqrt()
        pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return pairs[:, :size].reshape(-1, *shape)

    def normal_like(self, x: Tensor) -> Tensor:
        """N(0, 1) in the shape and type of x (B, …)."""
        return self.normal(*x.shape[1:], dtype=x.dtype)

    def dropout(self, x: Tensor, rate: float) -> Tensor:
        """x (B, …), elements zeroed with probability `rate`, the rest divided by 1 − rate."""
        kept = self.uniform(*x.shape[1:]) >= rate
        return x * kept.to(x.dtype) / (1.0 - rate)

    def _bits(self, count: int) -> Tensor:
        """The next `count` 64-bit outputs of every stream: (B, count) int64."""
        index = torch.arange(self.drawn + 1, self.drawn + count + 1, device=self.keys.device)
        self.drawn += count
        if torch.compiler.is_compiling():  # else constants are multiplied without wrapping around
            index = index + (self.keys[:1] & 0)
        return _mix(self.keys[:, None] + index * GOLDEN)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's output function on int64 (products wrap; shifts made logical by masking)."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * MIX_1
    z = (z ^ ((z >> 27) & (2**37 - 1))) * MIX_2
    return z ^ ((z >> 31) & (2**33 - 1))
