"""The context u: a deterministic, low-frequency summary of the image, quantised with dither.

    x (B, C, H, W) in [−1, 1]  --encode-->  v (B, C, d, d) in [−1, 1]  --dither-->  u on 2^b levels
    u  --render-->  x_u (B, C, H, W) in [−1, 1], what the decoder sees of it

Section 3 of arXiv 2302.09976 (DCT context); the dither makes q(u | x) a two-point distribution.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.distributions import Gaussian, TwoPoint, log_softplus
from model.levels import level_value, quantise
from model.noise import Noise
from model.part import Part

DITHER = 0.25  # half-width of the uniform dither, in levels


class Context(Part):
    """A deterministic summary of the image, made from (channels, image_size, ctx_size)."""

    active: Tensor  # (C, d, d): 1, or 0 where an element is constant over the data

    def fit(self, images: Tensor, max_value: int) -> None:
        """Set what depends on the training images (N, C, H, W) uint8, levels 0 … max_value."""

    def encode(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in [−1, 1] -> v (B, C, d, d) in [−1, 1]."""
        raise NotImplementedError

    def render(self, u: Tensor) -> Tensor:
        """u (B, C, d, d) -> an image of it (B, C, H, W) in [−1, 1]."""
        raise NotImplementedError


class DCTContext(Context):
    """The d×d lowest frequencies of the unnormalised 2-D DCT-II of the image in [0, 1], over S.

    S (C, d, d) is the training set's largest |floor(y)| (`fit`), saved with the model.
    Elements whose S is 0 are constant: `active` is 0 there.
    """

    def __init__(self, channels: int, image_size: int, ctx_size: int):
        super().__init__()
        forward, inverse = dct_matrices(image_size, ctx_size)
        self.register_buffer("forward_matrix", forward.float(), persistent=False)
        self.register_buffer("inverse_matrix", inverse.float(), persistent=False)
        self.register_buffer("scale", torch.ones(channels, ctx_size, ctx_size))

    @property
    def active(self) -> Tensor:
        """(C, d, d): 0 where S is 0, else 1."""
        return (self.scale > 0).to(self.scale)

    def transform(self, x: Tensor) -> Tensor:
        """y (B, C, d, d): scipy.fft.dctn((x + 1)/2, norm=None) over H and W, cropped."""
        with torch.autocast(x.device.type, enabled=False):
            return self.forward_matrix @ (0.5 * (x + 1.0)) @ self.forward_matrix.T

    @torch.no_grad()
    def fit(self, images: Tensor, max_value: int, chunk: int = 4096) -> None:
        """Set S from the training images (N, C, H, W) uint8 with levels 0 … max_value.

        In float64, and a y within 1e-6 of a whole number counts as it: rounding noise around zero
        must not give an empty frequency a scale of 1.
        """
        images = images.to("cpu") if images.device.type == "mps" else images  # it has no float64
        matrix, _ = dct_matrices(images.shape[-1], self.scale.shape[-1])
        columns = matrix.T.to(images.device)
        largest = torch.zeros(self.scale.shape, dtype=torch.float64, device=images.device)
        for part in images.split(chunk):
            # The matrix on the right: one product for all images instead of one for each.
            rows = (part.double() @ (columns / max_value)).transpose(2, 3).contiguous()
            y = rows @ columns  # transposed
            largest = torch.maximum(largest, (y + 1e-6).floor().abs().amax(0))
        self.scale.copy_(largest.transpose(1, 2))

    def encode(self, x: Tensor) -> Tensor:
        """v = clamp(y/S, −1, 1), 0 where S is 0."""
        scale = torch.where(self.scale > 0, self.scale, torch.ones_like(self.scale))
        return (self.transform(x) / scale).clamp(-1.0, 1.0) * self.active

    def render(self, u: Tensor) -> Tensor:
        """Inverse DCT of u·S, zero-padded to H×W, clamped to [0, 1], mapped to [−1, 1]."""
        with torch.autocast(u.device.type, enabled=False):
            image = self.inverse_matrix @ (u * self.scale) @ self.inverse_matrix.T
        return 2.0 * image.clamp(0.0, 1.0) - 1.0


class DownsampleContext(Context):
    """The image average-pooled by k = ceil(H/d), padded to k·d by repeating the edge."""

    def __init__(self, channels: int, image_size: int, ctx_size: int):
        super().__init__()
        self.image_size = image_size
        self.factor = -(-image_size // ctx_size)
        padding = self.factor * ctx_size - image_size
        self.before, self.after = padding // 2, padding - padding // 2
        self.register_buffer("active", torch.ones(channels, ctx_size, ctx_size), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """v (B, C, d, d): the pooled image."""
        padded = F.pad(x, (self.before, self.after, self.before, self.after), mode="replicate")
        return F.avg_pool2d(padded, self.factor)

    def render(self, u: Tensor) -> Tensor:
        """Bilinear upsampling by k (align_corners False), cropped to the image."""
        image = F.interpolate(u, scale_factor=self.factor, mode="bilinear", align_corners=False)
        inside = slice(self.before, self.before + self.image_size)
        return image[:, :, inside, inside]


CONTEXTS = {"dct": DCTContext, "downsample": DownsampleContext}


def dct_matrices(size: int, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` lowest rows of the unnormalised DCT-II, and their part of its inverse, in float64.

    forward (keep, size): y_k = 2 Σ_n x_n cos(πk(2n + 1)/(2·size)), as scipy.fft.dct(norm=None);
    inverse (size, keep): x from y where all higher frequencies are zero.
    """
    on_cpu = {"dtype": torch.float64, "device": "cpu"}  # arange on "meta" takes seconds to import
    k = torch.arange(keep, **on_cpu)[:, None]
    n = torch.arange(size, **on_cpu)
    forward = 2.0 * torch.cos(math.pi * k * (2.0 * n + 1.0) / (2.0 * size))
    inverse = forward.T / (2.0 * size)
    inverse[:, 0] *= 0.5
    return forward, inverse.contiguous()


def dither(v: Tensor, bits: int, width: float = DITHER) -> TwoPoint:
    """The distribution of level floor(r + e) with r = (v + 1)/2·2^b and e ~ U(−width, width)."""
    r = (v + 1.0) * (0.5 * 2**bits)
    top = (r + width).floor()
    low, high = level_value((r - width).floor(), bits), level_value(top, bits)
    p_high = ((r + width - top) / (2.0 * width)).clamp(0.0, 1.0)
    return TwoPoint(low, high, torch.where(low == high, torch.zeros_like(p_high), p_high))


class ContextPosterior(nn.Module):
    """q(u | x): the dithered quantiser (`delta`), or a Gaussian around its value.

    kind: `fixed` (log-variance `init`), `train` (one per element, from `init`, clamped to ±10) or
    `conditional` (a two-layer net of the quantised value, clamped to ±7).
    """

    def __init__(self, kind: str, init: float, channels: int, ctx_size: int, bits: int):
        super().__init__()
        self.kind, self.bits = kind, bits
        if kind == "fixed":
            self.register_buffer("logvar", torch.full((channels, ctx_size, ctx_size), float(init)))
        elif kind == "train":
            self.logvar = nn.Parameter(torch.full((channels, ctx_size, ctx_size), float(init)))
        elif kind == "conditional":
            self.net = nn.Sequential(
                nn.Conv2d(channels, 100, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(100, channels, 3, padding=1),
            )

    @property
    def continuous(self) -> bool:
        """Whether u has a density (else it lies on the levels)."""
        return self.kind != "delta"

    def forward(
        self, v: Tensor, active: Tensor, noise: Noise, temperature: float = 1.0
    ) -> tuple[Tensor, TwoPoint | Gaussian]:
        """u ~ q(u | x) and q, given v (B, C, d, d); elements that are not active stay at one level.

        With a Gaussian, q is the one around the level drawn. Its log-density alone, without the
        dither's probability, keeps the bound: the level is an auxiliary variable whose reverse
        model is the dither itself, so that the two cancel.
        """
        if temperature == 0:
            u = quantise(v, self.bits)
            levels = TwoPoint(u, u, torch.zeros_like(u))
        else:
            width = DITHER * math.sqrt(temperature)
            levels = dither(v, self.bits, width)
            levels = TwoPoint(levels.low, levels.high, levels.p_high * active)
            u = levels.sample(noise)
        if not self.continuous:
            return u, levels
        q = Gaussian(u, self._logvar(u))
        return q.sample(noise, temperature), q

    def _logvar(self, u: Tensor) -> Tensor:
        if self.kind == "fixed":
            return self.logvar.expand_as(u)
        if self.kind == "train":
            return self.logvar.clamp(-10.0, 10.0).expand_as(u)
        return log_softplus(self.net(u), 0.7).clamp(-7.0, 7.0)
