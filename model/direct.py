"""From every latent straight to the likelihood: Σ_l P_l up(z_l)/√L at the image's resolution.

`skip` adds it to the decoder's last state (after Dieng et al. 2019); `aggregate` puts it in the
state's place, so that the state conditions distributions only (arXiv 2302.09976's sibling, the
DVP-VAE). Shapes: z_l (B, w_l, h_l, h_l); the sum (B, c, H, W).
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

OUTPUTS = ("state", "skip", "aggregate")


class DirectPath(nn.Module):
    """P_l are 1×1 convolutions, one for each latent or, if `tied`, one for all; up is bilinear."""

    def __init__(self, widths: Sequence[int], channels: int, size: int, tied: bool):
        super().__init__()
        self.size, self.count, self.tied = size, len(widths), tied
        self.convs = nn.ModuleList(
            nn.Conv2d(width, channels, 1) for width in (widths[:1] if tied else widths)
        )

    def forward(self, values: Sequence[Tensor]) -> Tensor:
        """The latents' values, top to bottom -> (B, c, H, W).

        P and up commute (up keeps constants): latents of one resolution are summed first.
        """
        by_size: dict[int, Tensor] = {}
        for index, z in enumerate(values):
            mapped = self.convs[0 if self.tied else index](z)
            by_size[z.shape[-1]] = by_size.get(z.shape[-1], 0.0) + mapped
        size = (self.size, self.size)
        maps = [
            F.interpolate(each, size=size, mode="bilinear", align_corners=False)
            for each in by_size.values()
        ]
        return sum(maps[1:], maps[0]) / math.sqrt(self.count)
