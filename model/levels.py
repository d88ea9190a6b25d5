"""The 2^b evenly spaced levels that a quantised latent takes in [−1, 1]."""

from torch import Tensor


def level_value(level: Tensor, bits: int) -> Tensor:
    """(2k + 1)/2^b − 1, the value of level k clamped to 0 … 2^b − 1."""
    return (2.0 * level.clamp(0, 2**bits - 1) + 1.0) / 2**bits - 1.0


def quantise(v: Tensor, bits: int) -> Tensor:
    """v to the value of the level whose bin holds it; the outermost bins reach to ±∞."""
    return level_value(((v + 1.0) * (0.5 * 2**bits)).floor(), bits)
