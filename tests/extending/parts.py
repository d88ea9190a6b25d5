"""One class of each kind that the project knows nothing of; configs/ has a file for each.

    python run_experiment.py --config-dir tests/extending/configs experiment=digits_dct_ladder \
        dataset=stripes +model/decoder/context=mean model/decoder/z_L_prior=uniform \
        +model/objective=top_heavy +estimators=best +metrics=bits +trackers=csv \
        'task.estimators=[iwae,best]'
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from datasets.splits import ImageSplits
from model import LadderOutput, LadderVAE
from model.context import Context
from model.density import Density
from model.estimators import ESTIMATORS, Estimator, ImportanceSamples
from model.noise import Noise
from model.objective import LossParts, bits_per_dim
from model.priors import LatentSite, Prior
from utils.evaluation.collapse import Collapse
from utils.evaluation.metrics import CollapseMetric
from utils.tracking.sinks import Sink


def stripes(count: int) -> ImageSplits:
    """A data set: a function that returns images (N, C, H, W) in three splits."""
    generator = torch.Generator().manual_seed(0)
    widths = torch.randint(1, 5, (count, 1, 1, 1), generator=generator)
    images = (torch.arange(8).view(1, 1, 1, 8) // widths % 2 * 16).expand(count, 1, 8, 8)
    train, validation, test = images.byte().contiguous().split([count - 40, 20, 20])
    return ImageSplits(train, validation, test, max_value=16)


class MeanContext(Context):
    """A context: the mean of each of d × d squares of the image, shown as those squares."""

    def __init__(self, channels: int, image_size: int, ctx_size: int):
        super().__init__()
        self.square = image_size // ctx_size
        self.register_buffer("ones", torch.ones(channels, ctx_size, ctx_size), persistent=False)

    @property
    def active(self) -> Tensor:
        """All elements carry something: (C, d, d)."""
        return self.ones

    def fit(self, images: Tensor, max_value: int) -> None:
        """Nothing is taken from the training images."""

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, d, d)."""
        return torch.nn.functional.avg_pool2d(x, self.square)

    def render(self, u: Tensor) -> Tensor:
        """(B, C, d, d) -> (B, C, H, W)."""
        return torch.nn.functional.interpolate(u, scale_factor=self.square, mode="nearest")


class UniformDensity(Density):
    """p(u) = 1/levels for each level of each element."""

    def __init__(self, active: Tensor, num_levels: int):
        self.active, self.num_levels = active, num_levels

    def log_prob(self, u: Tensor) -> Tensor:
        """Element-wise, in nats."""
        return -math.log(self.num_levels) * self.active.expand_as(u)

    def kl_from(self, q: Density, u: Tensor) -> Tensor:
        """KL(q ‖ p), element-wise."""
        return -q.entropy() - self.log_prob(u)

    def sample_n(self, n: int, noise: Noise, temperature: float = 1.0) -> Tensor:
        """n draws from [−1, 1], which the decoder brings to the levels."""
        return 2.0 * noise.uniform(*self.active.shape) - 1.0


class UniformPrior(Prior):
    """A prior: every context is as likely as any other."""

    bounded = True

    def __init__(self, site: LatentSite):
        super().__init__()
        self.num_levels = 2**site.bits

    def context_density(self, active: Tensor, noise: Noise) -> UniformDensity:
        """p(u) of a context with these active elements."""
        return UniformDensity(active, self.num_levels)


class TopHeavy:
    """An objective: the top layer's KL counts `weight` times."""

    def __init__(self, weight: float, beta_end: float, **others: float):
        self.weight, self.beta_end = weight, beta_end

    def beta(self, epoch: int) -> float:
        """The weight of the KL in an epoch."""
        return self.beta_end

    def __call__(self, output: LadderOutput, beta: float) -> LossParts:
        """The loss of a batch in bits/dim, and its parts in nats."""
        kl = output.kl
        penalty = kl.sum(1) + (self.weight - 1.0) * kl[:, 0]
        nats = (output.reconstruction + beta * penalty).mean()
        dims = output.target[0].numel()
        return LossParts(bits_per_dim(nats, dims), output.reconstruction, kl)


class BestSample(Estimator):
    """An estimator: of ten samples the one of largest weight."""

    name = "best"
    is_bound = False
    description = "the largest of each ten weights; too optimistic, and no bound"
    uses_prior_paths = True

    def log_weights(
        self, model: LadderVAE, x: Tensor, target: Tensor, samples: ImportanceSamples
    ) -> Iterator[Tensor]:
        """(k, B) log-weights in nats at a time."""
        more = replace(samples, count=10 * samples.count)
        for log_weights in ESTIMATORS["iwae"].log_weights(model, x, target, more):
            yield torch.stack([part.amax(0) for part in log_weights.split(10)])


class BitsPerUnit(CollapseMetric):
    """A collapse metric: the KL of a layer's average unit."""

    title = "bits a unit"
    explanation = "KL of the average unit in bits"

    def per_layer(self, collapse: Collapse) -> list[float]:
        """One value per layer, from the top."""
        return [units.kl.mean().item() / math.log(2.0) for units in collapse.layers]


class Csv(Sink):
    """A tracker: every figure of every epoch as a line of a file in the run's folder."""

    def __init__(self, folder: Path, file: str):
        self.path = folder / file

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """Append the epoch's lines."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(f"{epoch},{key},{value}\n" for key, value in values.items())
