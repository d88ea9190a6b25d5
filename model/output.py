"""What a posterior pass of the ladder returns."""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.distributions import sum_per_image
from model.latent import Latent
from model.likelihoods import Likelihood


@dataclass(frozen=True)
class LadderOutput:
    """One pass of the posterior, per image."""

    px: Likelihood  # p(x | z, u)
    latents: list[Latent]  # top to bottom, the context first where there is one
    target: Tensor  # (B, C, H, W), whose log-probability counts: x, or a binarisation of it

    @property
    def kl(self) -> Tensor:
        """(B, number of latents) nats, context first; 0 where a latent came from its prior."""
        none = self.target.new_zeros(len(self.target))
        return torch.stack(
            [none if each.kl is None else sum_per_image(each.kl) for each in self.latents], dim=1
        )

    @property
    def reconstruction(self) -> Tensor:
        """−log p(target | latents): (B,) nats."""
        return -self.px.log_density(self.target)
