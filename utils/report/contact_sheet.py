"""Images of every split on one sheet, each beside its context."""

import torch
from torch import Tensor

from datasets.loaders import normalise
from datasets.splits import ImageSplits
from model.context import Context
from model.levels import quantise
from utils.report import pictures
from utils.report.drawing import Drawing
from utils.settings.build import build_context
from utils.settings.schema import Settings

ROWS = {"train": 6, "validation": 2, "test": 2}
ACROSS = 6  # images in a row, each with its context


def contact_sheet(splits: ImageSplits, settings: Settings) -> Drawing:
    """Images of every split; where the model has a context, each with its own to its right."""
    context, rows = build_context(settings), []
    title = settings.dataset.name
    if context is not None:
        context.fit(splits.train, splits.max_value)
        side = settings.model.ctx_size
        numbers = " × ".join(map(str, (splits.image_shape[0], side, side)))
        title += f": each image, and its context ({numbers} numbers) to its right"
    for split, most in ROWS.items():
        images = getattr(splits, split)
        count = min(len(images), most * ACROSS)
        indices = torch.linspace(0, len(images) - 1, count).round().long()
        x = normalise(images[indices], splits.max_value)
        if context is not None:
            x = _with_contexts(x, context, settings.model.decoder.z_L_bits)
        parts = x.split(ACROSS * (1 if context is None else 2))
        rows += [(split if n == 0 else "", part) for n, part in enumerate(parts)]
    return pictures.image_rows("contact_sheet", title, rows)


def _with_contexts(x: Tensor, context: Context, bits: int) -> Tensor:
    """x (B, C, H, W) -> (2B, C, H, W): after each image its context in image space."""
    rendered = context.render(quantise(context.encode(x), bits))
    return torch.stack([x, rendered], 1).flatten(0, 1)
