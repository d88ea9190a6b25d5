"""Bottom-up: x -> one feature map per latent, finest first."""

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import BlockStyle, channels_last, encoder_block
from model.part import Part
from model.scales import Scale


class LadderEncoder(Part):
    """One net of `num_blocks_per_scale` encoder blocks per latent.

    The first net of a scale changes channels in its first block and ends in average pooling.
    """

    def __init__(
        self,
        in_channels: int,
        num_ch: int,
        scales: list[Scale],
        style: BlockStyle,
        num_init_blocks: int,
        num_blocks_per_scale: int,
    ):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, num_ch, 1)
        self.init_blocks = nn.Sequential(
            *(encoder_block(num_ch, num_ch, style) for _ in range(num_init_blocks))
        )
        self.nets, self.pools, self.uses = nn.ModuleList(), [], []
        channels = num_ch
        for scale in scales:
            for index, uses in enumerate(self.latents_per_net(scale)):
                blocks = []
                for _ in range(num_blocks_per_scale):
                    blocks.append(encoder_block(channels, scale.channels, style))
                    channels = scale.channels
                self.nets.append(nn.Sequential(*blocks))
                self.pools.append(scale.factor if index == 0 else 1)
                self.uses.append(uses)

    @staticmethod
    def latents_per_net(scale: Scale) -> list[int]:
        """How many latents read the output of each of the scale's nets."""
        return [1] * scale.num_latents

    def forward(self, x: Tensor) -> list[Tensor]:
        """Standardised x (B, C, H, W) -> features (B, c, h, h), one per latent, bottom up."""
        h = self.init_blocks(self.stem(channels_last(x)))
        features = []
        for net, pool, uses in zip(self.nets, self.pools, self.uses, strict=True):
            h = net(h)
            h = F.avg_pool2d(h, pool) if pool > 1 else h
            features += [h] * uses
        return features


class SmallLadderEncoder(LadderEncoder):
    """One net per scale that has latents; all of its latents read the same feature."""

    @staticmethod
    def latents_per_net(scale: Scale) -> list[int]:
        """One net, read by all."""
        return [scale.num_latents]
