"""Latents out of a trained model and into it: encode, decode, interpolate, exchange.

Layers are numbered from the top, 0 is the context where there is one. B images with S samples each
are S·B rows, sample-major: the first sample of every image, then the second, …
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from model.distributions import sum_per_image
from model.likelihoods import Likelihood
from model.noise import Noise


@dataclass(frozen=True)
class EncodedLayer:
    """One layer of encoded images: the posterior's mean and standard deviation, a sample, its KL.

    mean, stddev, sample: (S·B, w, h, h), given the samples of the layers above. kl: (S·B,) nats.
    """

    mean: Tensor
    stddev: Tensor
    sample: Tensor
    kl: Tensor


class LatentAccess:
    """What a hierarchical VAE offers about its latents, by `infer` and `generate` alone.

    A class that has it says its `latent_shapes`, [(w, h, h)] from the top.
    """

    latent_shapes: Sequence[tuple[int, ...]]
    has_context = False  # whether the top latent is a deterministic summary of the image
    takes_means = True  # whether latents can be the means of their distributions
    any_temperature = True  # whether its draws can have any temperature

    @property
    def num_latents(self) -> int:
        """Layers."""
        return len(self.latent_shapes)

    @torch.no_grad()
    def latents(
        self, x: Tensor, samples: int = 1, temperature: float = 1.0, noise: Noise | None = None
    ) -> list[EncodedLayer]:
        """Every layer's posterior, top to bottom, of `samples` draws for each image.

        x (B, C, H, W) in [−1, 1]. temperature 0 takes means, without dither. noise: (B,) streams;
        one sample uses them as `model(x, noise=noise)` does, several their `Noise.samples`.

        Raises:
            ValueError: if samples is below 1.
        """
        if samples < 1:
            raise ValueError(f"samples={samples} encodes nothing: use 1 or more.")
        noise = noise or Noise.fresh(len(x), x.device)
        if samples > 1:
            x, noise = x.repeat(samples, 1, 1, 1), noise.samples(0, samples)
        inferred = self.infer(x, [True] * len(self.latent_shapes), temperature, noise).latents
        return [
            EncodedLayer(
                latent.q.mean.expand_as(latent.z),
                latent.q.stddev.expand_as(latent.z),
                latent.z,
                sum_per_image(latent.kl),
            )
            for latent in inferred
        ]

    @torch.no_grad()
    def decode(
        self,
        latents: Sequence[EncodedLayer | Tensor | None],
        temperature: float = 1.0,
        noise: Noise | None = None,
    ) -> Likelihood:
        """p(x | latents) of n rows, a likelihood with `mean`, `sample()` and `log_prob(x)`.

        latents: from the top, what `latents` returned (its samples are taken) or tensors
        (n, w, h, h). None, and every layer below the last one given, is drawn from its prior at
        this temperature, with this noise (n,).

        Raises:
            ValueError: if no layer is given, there are too many, or one has another shape.
        """
        values = [z.sample if isinstance(z, EncodedLayer) else z for z in latents]
        n = self._check_values(values)
        device = next(z.device for z in values if z is not None)
        return self.generate(n, temperature, noise or Noise.fresh(n, device), values)

    @torch.no_grad()
    def interpolate(
        self,
        x_a: Tensor,
        x_b: Tensor,
        layers: Sequence[int] | None = None,
        steps: int = 9,
        temperature: float = 0.0,
        noise: Noise | None = None,
    ) -> Tensor:
        """E[x | latents] on the way from x_a to x_b: (steps, B, C, H, W) in [−1, 1].

        The latents of `layers` (None: of all) go straight from x_a's to x_b's, a quantised context
        by its nearest levels; the others stay x_a's. Both ends included. x_a, x_b (B, C, H, W) are
        encoded at this temperature, with the same noise (B,); 0 takes their posterior means.

        Raises:
            ValueError: if a layer does not exist, steps is below 2, or the shapes differ.
        """
        if not isinstance(steps, int) or steps < 2:
            raise ValueError(f"steps={steps} is no way to both ends: use a whole number from 2.")
        moved, a, b = self._encode_pair(x_a, x_b, layers, temperature, noise)
        images = []
        for way in torch.linspace(0.0, 1.0, steps).tolist():
            mixed = [
                self.valid_latent(layer, torch.lerp(z_a, z_b, way)) if layer in moved else z_a
                for layer, (z_a, z_b) in enumerate(zip(a, b, strict=True))
            ]
            images.append(self.decode(mixed).mean)
        return torch.stack(images)

    @torch.no_grad()
    def swap(
        self,
        x_a: Tensor,
        x_b: Tensor,
        layers: Sequence[int] | None = None,
        temperature: float = 0.0,
        noise: Noise | None = None,
    ) -> tuple[Tensor, Tensor]:
        """E[x | latents] of x_a with x_b's latents of `layers`, and of x_b with x_a's.

        Both (B, C, H, W) in [−1, 1]; arguments and errors as those of `interpolate`.
        """
        moved, a, b = self._encode_pair(x_a, x_b, layers, temperature, noise)
        pairs = [
            (z_b, z_a) if layer in moved else (z_a, z_b)
            for layer, (z_a, z_b) in enumerate(zip(a, b, strict=True))
        ]
        first, second = zip(*pairs, strict=True)
        return self.decode(first).mean, self.decode(second).mean

    def valid_latent(self, layer: int, z: Tensor) -> Tensor:
        """The nearest values to z that the layer's latent takes: z, where it takes any."""
        return z

    def check_layers(self, layers: Sequence[int] | None) -> list[int]:
        """These layers, sorted and without repetition; None stands for all.

        Raises:
            ValueError: if one of them does not exist, or none is named.
        """
        count = len(self.latent_shapes)
        named = range(count) if layers is None else layers
        chosen = [layer for layer in range(count) if isinstance(named, Sequence) and layer in named]
        if not chosen or not set(named) <= set(chosen):
            raise ValueError(
                f"layers={layers} names no layers of this model: use numbers from 0 (the "
                f"top) to {count - 1}."
            )
        return chosen

    def _encode_pair(
        self,
        x_a: Tensor,
        x_b: Tensor,
        layers: Sequence[int] | None,
        temperature: float,
        noise: Noise | None,
    ) -> tuple[list[int], list[Tensor], list[Tensor]]:
        """The layers to move, and the latents' values of both."""
        moved = self.check_layers(layers)
        if x_a.shape != x_b.shape:
            raise ValueError(
                f"x_a {tuple(x_a.shape)} and x_b {tuple(x_b.shape)} differ in shape: give as many "
                "images of the same size."
            )
        noise = noise or Noise.fresh(len(x_a), x_a.device)
        both = [
            self.latents(x, temperature=temperature, noise=Noise(noise.keys)) for x in (x_a, x_b)
        ]
        a, b = ([layer.sample for layer in encoded] for encoded in both)
        return moved, a, b

    def _check_values(self, values: Sequence[Tensor | None]) -> int:
        """The number of rows.

        Raises:
            ValueError: see `decode`.
        """
        shapes = self.latent_shapes
        if len(values) > len(shapes):
            raise ValueError(
                f"latents has {len(values)} layers, the model {len(shapes)}: give at most those, "
                "from the top."
            )
        rows = {len(z) for z in values if z is not None}
        if len(rows) != 1:
            raise ValueError(
                f"latents has layers of {sorted(rows) or 'no'} rows: give one layer at least, and "
                "all of as many rows."
            )
        for layer, (z, shape) in enumerate(zip_longest(values, shapes)):
            if z is not None and tuple(z.shape[1:]) != tuple(shape):
                raise ValueError(
                    f"latents[{layer}] has the shape {tuple(z.shape)}: this layer's is (rows, "
                    f"{', '.join(map(str, shape))})."
                )
        return rows.pop()
