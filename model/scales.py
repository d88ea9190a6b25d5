"""The ladder's geometry: which resolutions have latents, with how many channels."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """One resolution that has latents."""

    channels: int  # of the deterministic state and the encoder's features
    size: int  # height and width
    num_latents: int
    width: int  # channels of each latent
    factor: int  # pooling from the next finer scale that has latents, or from the image


def layout(
    image_size: int,
    latent_scales: Sequence[int],
    latent_width: Sequence[int],
    num_ch: int,
    scale_ch_mult: float,
    start_scale_at_x: bool,
) -> list[Scale]:
    """The scales that have latents, finest first.

    Scale s (1-based) has size image_size / 2^s, or / 2^(s−1) with start_scale_at_x. Channels are
    multiplied by scale_ch_mult and truncated at every scale, those without latents included.

    Raises:
        ValueError: if the lists differ in length, the coarsest scale has no latents, latents have
            no channels, or the image cannot be halved that often.
    """
    _check(image_size, latent_scales, latent_width, start_scale_at_x)
    scales, size, finer, channels = [], image_size, image_size, num_ch
    for index, (count, width) in enumerate(zip(latent_scales, latent_width, strict=True)):
        if index > 0:
            channels = int(channels * scale_ch_mult)
        if index > 0 or not start_scale_at_x:
            size //= 2
        if count > 0:
            scales.append(Scale(channels, size, count, width, finer // size))
            finer = size
    return scales


def _check(
    image_size: int,
    latent_scales: Sequence[int],
    latent_width: Sequence[int],
    start_scale_at_x: bool,
) -> None:
    """Refuse lists that describe no ladder, or none of this image."""
    if len(latent_scales) != len(latent_width):
        raise ValueError(
            f"model.latent_scales={list(latent_scales)} has {len(latent_scales)} scales and "
            f"model.latent_width={list(latent_width)} has {len(latent_width)}: give both one "
            "number per scale."
        )
    if latent_scales[-1] == 0:
        raise ValueError(
            f"model.latent_scales={list(latent_scales)} has no latents at its coarsest scale: drop "
            "the trailing zeros or put a latent there."
        )
    if any(count and width < 1 for count, width in zip(latent_scales, latent_width, strict=True)):
        raise ValueError(
            f"model.latent_width={list(latent_width)} has a 0 at a scale with latents "
            f"(model.latent_scales={list(latent_scales)}): give it a width."
        )
    halvings = len(latent_scales) - (1 if start_scale_at_x else 0)
    if image_size % 2**halvings:
        unit = 2**halvings
        below, above = image_size // unit * unit, -(-image_size // unit) * unit
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"model.latent_scales={list(latent_scales)} halves the image {halvings} times, which "
            f"{image_size} pixels don't allow: use {sizes} (multiples of {unit}) or fewer scales."
        )
