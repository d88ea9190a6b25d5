"""Somebody else's hierarchical VAE behind the interface by which this project evaluates its own.

What such a model must say is `HierarchicalVAE`; distributions are torch.distributions or look like
them. A latent of any shape is shown as (B, w, h, h'): one of (B, d) as (B, d, 1, 1).
"""

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from model.distributions import sum_per_image
from model.estimators import log_mean
from model.latent import Latent
from model.latents import LatentAccess
from model.noise import Noise
from model.output import LadderOutput


class HierarchicalVAE(Protocol):
    """p(x | z_1 …) Π p(z_l | z above) and q, top to bottom in the order in which p draws them."""

    layer_names: Sequence[str]

    def infer(self, x: Tensor, keep: Sequence[bool]) -> tuple[Any, list[tuple[Tensor, Any, Any]]]:
        """px = p(x | z), and (z, q, p) of each layer; x (B, C, H, W) in [−1, 1].

        z ~ q(z | x, …) where keep[l], else z ~ p(z | z above), and q may be None. q and p are
        distributions element by element: their log_prob(z) has z's shape. px has a `mean`
        (B, C, H, W) and a log_prob(x), per image or per element. A third parameter `means`, if
        infer has one, is true for the layers that take the mean of their distribution as z.
        """

    def generate(self, n: int, given: Sequence[Tensor]) -> Any:
        """px of n rows, given z of the first layers; those below are drawn from their priors."""


@dataclass(frozen=True)
class _Moments:
    """A distribution's mean and standard deviation as maps."""

    mean: Tensor
    stddev: Tensor

    @classmethod
    def of(cls, distribution: Any, z: Tensor) -> "_Moments":
        """Of one of z's shape, or that broadcasts to it."""
        return cls(*(_map(v.expand_as(z)) for v in (distribution.mean, distribution.stddev)))


@dataclass(frozen=True)
class _Pixels:
    """p(x | z) with log-probabilities per image."""

    px: Any

    @property
    def mean(self) -> Tensor:
        """E[x | z]: (B, C, H, W)."""
        return self.px.mean

    def log_prob(self, x: Tensor) -> Tensor:
        """(B,) nats."""
        found = self.px.log_prob(x)
        return found if found.dim() == 1 else sum_per_image(found)

    def log_density(self, x: Tensor) -> Tensor:
        """The same: what `LadderOutput` asks for."""
        return self.log_prob(x)

    def sample(self) -> Tensor:
        """A draw of x."""
        return self.px.sample()


class AdaptedVAE(LatentAccess, nn.Module):
    """The model `vae`, in evaluation mode, for images of the shape (C, H, W).

    It draws from PyTorch's generator, which is seeded by the images' noise here: the same batch
    gets the same draws, whichever layers are kept, as long as it draws from the top down.
    Temperatures are 1, and 0 where `infer` takes `means`.

    Raises:
        ValueError: in one sentence, if what it returns is not what `HierarchicalVAE` says.
    """

    any_temperature = False
    uses_paths = False

    def __init__(self, vae: HierarchicalVAE, image_shape: Sequence[int]):
        super().__init__()
        self.vae, self.image_shape = vae, tuple(image_shape)
        self.takes_means = "means" in inspect.signature(vae.infer).parameters
        self.names, self.own_shapes = list(vae.layer_names), []
        self.eval()
        with torch.no_grad():
            x = torch.zeros(2, *self.image_shape, device=self.device)
            layers = self._inferred(x, [True] * len(self.names), Noise.fresh(2, x.device))[1]
        self.own_shapes = [tuple(z.shape[1:]) for z, _, _ in layers]

    @property
    def latent_shapes(self) -> list[tuple[int, ...]]:
        """(w, h, h') of each layer as maps, top to bottom."""
        return [tuple(_map(torch.empty(1, *shape)).shape[1:]) for shape in self.own_shapes]

    @property
    def layer_names(self) -> list[str]:
        """Numbers from the top, and its own names."""
        return [f"{number} ({name})" for number, name in enumerate(self.names)]

    @property
    def device(self) -> torch.device:
        """Its parameters' device; the CPU where it has none."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def forward(
        self, x: Tensor, temperature: float = 1.0, noise: Noise | None = None
    ) -> LadderOutput:
        """A pass with all layers inferred."""
        return self.infer(x, [True] * len(self.names), temperature, noise)

    def infer(
        self,
        x: Tensor,
        keep: Sequence[bool],
        temperature: float = 1.0,
        noise: Noise | None = None,
        prior_temperature: float | None = None,
    ) -> LadderOutput:
        """As `LadderVAE.infer`; temperatures are 0 or 1."""
        of_priors = temperature if prior_temperature is None else prior_temperature
        means = [(temperature if kept else of_priors) == 0 for kept in keep]
        px, layers = self._inferred(x, keep, noise or Noise.fresh(len(x), x.device), means)
        latents = []
        for kept, (z, q, p) in zip(keep, layers, strict=True):
            kl = _map(_kl(q, p, z)) if kept else None
            moments = _Moments.of(q, z) if kept else None
            latents.append(Latent(_map(z), moments, _Moments.of(p, z), kl))
        return LadderOutput(_Pixels(px), latents, x)

    def generate(
        self,
        n: int,
        temperature: float = 1.0,
        noise: Noise | None = None,
        given: Sequence[Tensor] = (),
    ) -> _Pixels:
        """p(x | latents) of n rows; the first latents may be given, as maps.

        Raises:
            ValueError: at another temperature than 1, or if a layer between is left open.
        """
        if temperature != 1.0 or any(z is None for z in given):
            raise ValueError(
                f"{type(self.vae).__name__} draws at temperature=1, and what is below the layers "
                "given: leave out the temperature, and give layers from the top."
            )
        own = [z.reshape(n, *shape) for z, shape in zip(given, self.own_shapes, strict=False)]
        with _seeded(noise or Noise.fresh(n, self.device)):
            return _Pixels(self.vae.generate(n, own))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Stands for the encoder's features where memory is estimated: the images."""
        return [x]

    @torch.no_grad()
    def estimate(
        self,
        x: Tensor,
        num_samples: int,
        estimator: Any = "iwae",
        noise: Noise | None = None,
        **options: int,
    ) -> tuple[Tensor, Tensor]:
        """log p(x) in nats, (B,), by importance weights (`iwae`), and their effective number."""
        noise = noise or Noise.fresh(len(x), x.device)

        def log_weights() -> Iterator[Tensor]:
            keep = [True] * len(self.names)
            for sample in range(num_samples):
                px, layers = self._inferred(x, keep, noise.samples(sample, 1))
                log_w = _Pixels(px).log_prob(x)
                for z, q, p in layers:
                    log_w = log_w + sum_per_image(p.log_prob(z) - q.log_prob(z))
                yield log_w[None]

        return log_mean(log_weights())

    def _inferred(
        self, x: Tensor, keep: Sequence[bool], noise: Noise, means: Sequence[bool] = ()
    ) -> tuple[Any, list[tuple[Tensor, Any, Any]]]:
        """What the model's own `infer` returns, looked at."""
        arguments = {"means": list(means) or [False] * len(keep)} if self.takes_means else {}
        with _seeded(noise):
            px, layers = self.vae.infer(x, list(keep), **arguments)
        self._check(x, keep, px, layers)
        return px, layers

    def _check(self, x: Tensor, keep: Sequence[bool], px: Any, layers: Sequence) -> None:
        name = f"{type(self.vae).__name__}.infer"
        if len(layers) != len(self.names):
            raise ValueError(
                f"{name} returned {len(layers)} layers, layer_names has {len(self.names)}: make "
                "them as many."
            )
        for layer, kept, (z, q, p) in zip(self.names, keep, layers, strict=True):
            if kept and q is None:
                raise ValueError(f"{name} returned no q of {layer}, which is to be kept: add it.")
            for which in (q, p) if kept else (p,):
                if len(z) != len(x) or which.log_prob(z).shape != z.shape:
                    raise ValueError(
                        f"{name} returned for {layer} a z of {tuple(z.shape)} whose log_prob has "
                        f"the shape {tuple(which.log_prob(z).shape)}: return (B, …) and "
                        "distributions element by element, without Independent."
                    )
        if px.mean.shape != x.shape or px.log_prob(x).shape[:1] != x.shape[:1]:
            raise ValueError(
                f"{name} returned a px with a mean of {tuple(px.mean.shape)} for images of "
                f"{tuple(x.shape)}: return p(x | z) in the images' shape."
            )


@contextmanager
def _seeded(noise: Noise) -> Iterator[None]:
    """PyTorch's generator seeded by a batch's noise, and left as it was."""
    devices = [noise.keys.device] if noise.keys.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(noise.keys.sum()) & (2**63 - 1))
        yield


def _kl(q: Any, p: Any, z: Tensor) -> Tensor:
    """KL(q ‖ p) per element: exact where PyTorch knows it, else an estimate from z."""
    try:
        return kl_divergence(q, p).expand_as(z)
    except NotImplementedError:
        return q.log_prob(z) - p.log_prob(z)


def _map(z: Tensor) -> Tensor:
    """(B, …) as (B, w, h, h')."""
    if z.dim() == 4:
        return z
    rest = z.shape[1:]
    return z.reshape(len(z), *((*rest, 1, 1)[:3] if len(rest) < 3 else (math.prod(rest), 1, 1)))
