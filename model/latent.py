"""One layer of the ladder: its latent's prior and posterior, and what it adds to the state.

    z ~ q(z | s, feature) or p(z | s);  s ← s + f;  s ← block(s + 1×1(z))

Section 2 of arXiv 2302.09976. Shapes: z (B, w, h, h); the state s and the features (B, c, h, h).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.density import Density
from model.distributions import Gaussian, TwoPoint
from model.layers import (
    BlockStyle,
    at_least_float32,
    channels_last,
    decoder_block,
    decoder_net,
    last_conv,
    split_channels,
)
from model.noise import Noise
from model.posteriors import posterior_form
from model.priors import LogVariance, Prior
from model.scales import Scale


@dataclass(frozen=True)
class Latent:
    """One layer: z (B, w, h, h), its posterior q and prior p, and KL per element (nats).

    q is None where there was no feature to infer it from. kl is None where z did not come from q,
    or where it has not been computed.
    """

    z: Tensor
    q: Gaussian | TwoPoint | None
    p: Density
    kl: Tensor | None = None

    def with_kl(self) -> "Latent":
        """This latent with its KL, an estimate of which draws from the noise that p holds."""
        return replace(self, kl=self.p.kl_from(self.q, self.z))


class LatentBlock(nn.Module):
    """Prior, posterior and state update of one Gaussian latent.

    posterior: one of `POSTERIORS`; delta: the rate that `committed` commits the latent to, nats.
    updates_state: False where nothing reads the state after this latent.
    """

    def __init__(
        self,
        scale: Scale,
        out_channels: int,
        style: BlockStyle,
        prior: Prior,
        log_variance: LogVariance,
        num_blocks: int,
        disconnect: bool,
        num_latents: int,
        posterior: str = "absolute",
        delta: float | None = None,
        updates_state: bool = True,
    ):
        super().__init__()
        channels, width = scale.channels, scale.width
        self.width, self.disconnect, self.prior = width, disconnect, prior
        self.shape = (width, scale.size, scale.size)
        per_element = delta and delta / (width * scale.size**2)
        self.form = posterior_form(posterior, log_variance, prior.bounded, per_element)
        self.updates_state = updates_state
        self.posterior_net = decoder_net(channels, 2 * width, style)
        nn.init.uniform_(last_conv(self.posterior_net).weight, -1.0, 1.0)
        if not updates_state:
            return
        self.z_conv = nn.Conv2d(width, channels, 1)
        outs = [channels] * (num_blocks - 1) + [out_channels]
        self.blocks = nn.Sequential(*(decoder_block(channels, out, style) for out in outs))
        with torch.no_grad():  # variance grows with depth: scale what each latent adds
            for conv in [self.z_conv, *(last_conv(block.net) for block in self.blocks)]:
                conv.weight.mul_(math.sqrt(1.0 / num_latents))

    def posterior(self, s: Tensor, feature: Tensor, p: Density) -> Gaussian:
        """q(z | s, feature), beside p(z | s)."""
        h = self.posterior_net(feature if self.disconnect else feature + s)
        mean, raw = split_channels(at_least_float32(h), [self.width] * 2)
        return self.form(mean, raw, p)

    def forward(
        self,
        s: Tensor,
        feature: Tensor | None,
        given: Tensor | None,
        noise: Noise,
        temperature: float,
        prior_temperature: float,
    ) -> tuple[Latent, Tensor]:
        """z as given, else from the posterior where there is a feature, else from the prior."""
        p, features = self.prior(s, noise)
        q = None if feature is None else self.posterior(s, feature, p)
        kl = None
        if given is not None:
            z = given
        elif q is not None:
            z = q.sample(noise, temperature)
            kl = p.kl_from(q, z)
        else:
            z = p.sample_n(len(s), noise, prior_temperature)
        if not self.updates_state:
            return Latent(z, q, p, kl), s
        if features is not None:
            s = s + features
        return Latent(z, q, p, kl), self.blocks(s + self.z_conv(channels_last(z)))
