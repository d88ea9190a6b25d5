"""Draws docs/pictures/kept_top.png: images drawn anew from nothing but their top latent.

python -m docs.pictures.kept_top pretrained/mnist_ladder pretrained/mnist_dct_ladder
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from datasets.loaders import normalise
from model.ladder_vae import LadderVAE
from model.noise import Noise
from utils.checkpoint import load, locate
from utils.settings.images import load_images

ROWS, DRAWS, SEED = 6, 6, 0


def main(names: list[str]) -> None:
    """Write the picture beside this file: a panel for each model."""
    figure = Figure(figsize=(4.2 * len(names), 3.9), facecolor="white")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.92, 0.06)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        model, settings = load(locate(name), [], "cpu", ())
        splits = load_images(settings)
        firsts = [int((splits.labels[2] == label).nonzero()[0]) for label in range(ROWS)]
        rows = drawn_anew(model, normalise(splits.test[firsts], splits.max_value))
        axes.imshow(tiled(rows), cmap="gray", vmin=-1.0, vmax=1.0, interpolation="nearest")
        kind = "DCT context" if model.has_context else "plain ladder"
        axes.set_title(f"{kind}: a test image, and draws with its top latent", fontsize=10)
        axes.axis("off")
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=100)


def drawn_anew(model: LadderVAE, x: Tensor) -> list[Tensor]:
    """For each image of x (B, C, H, W): itself and its draws, (1 + DRAWS, C, H, W)."""
    copies = x.repeat_interleave(DRAWS, 0)
    noise = Noise.keyed(torch.arange(len(copies)), SEED)
    draws = model.reconstruct(copies, keep=1, noise=noise).split(DRAWS)
    return [torch.cat([image[None], drawn]) for image, drawn in zip(x, draws, strict=True)]


def tiled(rows: list[Tensor]) -> Tensor:
    """The first channel of rows (N, C, H, W) as one (H', W') image, white between them."""
    padded = [torch.nn.functional.pad(row[:, 0], (1, 1, 1, 1), value=1.0) for row in rows]
    gap = torch.ones(padded[0].shape[1], 4)
    lines = [torch.cat([row[0], gap, *row[1:]], 1) for row in padded]
    return torch.cat(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
