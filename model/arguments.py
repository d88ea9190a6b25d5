"""What users may pass to a model: images, temperatures, numbers of samples and of layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 1e-3  # over [−1, 1] that images may be by their way of scaling


@torch.no_grad()
def check_images(x: Tensor, shape: Sequence[int], look: bool = True) -> None:
    """x is a batch of images of this shape (C, H, W) in [−1, 1].

    look: whether its values are looked at, for which a GPU has to be waited for.

    Raises:
        ValueError: otherwise.
    """
    if x.dim() != 4 or tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(
            f"x has shape {tuple(x.shape)}: a batch of images (B, {', '.join(map(str, shape))}) is "
            "wanted."
        )
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}: bring 0 … 255 to [-1, 1] by x.float() / 127.5 - 1.")
    if not look or not len(x):
        return
    low, high = torch.stack(x.aminmax()).tolist()
    if not (low >= -1.0 - ROUNDING and high <= 1.0 + ROUNDING):  # NaN too
        raise ValueError(
            f"x has values from {low:.4g} to {high:.4g}: bring images to [-1, 1] (0 … 255 by "
            "x / 127.5 - 1, 0 … 1 by 2 * x - 1)."
        )


def check_draws(n: int, temperature: float) -> None:
    """n draws at this temperature.

    Raises:
        ValueError: if there are none, or the temperature is negative or not finite.
    """
    if n < 1:
        raise ValueError(f"n={n} draws nothing: use 1 or more.")
    check_temperature(temperature)


def check_temperature(temperature: float) -> None:
    """A temperature scales variances.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature={temperature} is no scale of variances: use 0 or more.")


def check_kept(keep: int, layers: int) -> None:
    """The top `keep` of so many layers.

    Raises:
        ValueError: if there are not so many.
    """
    if not 0 <= keep <= layers:
        raise ValueError(
            f"keep={keep} is not within the model's {layers} layers: use 0 … {layers}."
        )
