"""Information of the layers about the image: interventions, mutual information, aggregates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.loaders import EvaluationBatches, evenly_spaced
from model import LadderVAE
from model.distributions import sum_per_image
from model.estimators import repeat_rows
from model.latent import Latent
from model.noise import Noise, NoisePurpose
from model.output import LadderOutput
from utils.evaluation.bound import rows_that_fit
from utils.evaluation.collapse import mean_and_error
from utils.processes import collectives

BINS = 32  # of histograms, at most: a context of fewer levels has one bin per level
RESIDUALS = 4.0  # histograms of standardised latents span [−4, 4]
SATURATION = 0.1  # nats below log N from which information says only that the images differ


@dataclass(frozen=True)
class Intervention:
    """The bound with some layers drawn from their priors; tensors (N,) nats, float64."""

    kept: tuple[bool, ...]  # per layer from the top: whether it is inferred from the image
    reconstruction: Tensor
    nelbo: Tensor  # reconstruction + KL of the layers kept: a bound on −log p(x)


def layer_masks(layers: int) -> list[tuple[bool, ...]]:
    """The layers to keep in each intervention: the top 0, 1, …, all; then all but one.

    All but the lowest appears once, as the top layers − 1.
    """
    top = [tuple(layer < k for layer in range(layers)) for k in range(layers + 1)]
    without = [tuple(layer != one for layer in range(layers)) for one in range(layers - 1)]
    return top + without


@torch.no_grad()
def interventions(
    model: LadderVAE, batches: EvaluationBatches, seed: int, tick: Callable[[int], None]
) -> dict[tuple[bool, ...], Intervention]:
    """The bound under every mask of `layer_masks`, over the images of all processes.

    All masks share the same noise, except below a context that is itself drawn (it takes another
    number of random numbers than one that is inferred). One sample per image is used: with more
    importance samples every bound would approach the same log p(x), and the difference would
    measure K, not the layer.
    """
    model.eval()
    masks = layer_masks(model.num_latents)
    ids, bounds = [], []
    for batch in batches:
        by_mask = []
        for kept in masks:
            noise = Noise.keyed(batch.ids, seed, NoisePurpose.INTERVENTION)
            by_mask.append(_bound(model.infer(batch.x, kept, noise=noise)))
        ids.append(batch.ids.cpu())
        bounds.append(torch.stack(by_mask, 1).cpu())  # (B, masks, 2)
        tick(len(batch.ids))
    table = collectives.by_image(ids, bounds, len(batches.images))  # (N, masks, 2)
    return {
        kept: Intervention(kept, *table[:, index].unbind(1)) for index, kept in enumerate(masks)
    }


def _bound(output: LadderOutput) -> Tensor:
    """(B, 2) float64: reconstruction, and reconstruction + KL, in nats."""
    reconstruction = output.reconstruction.double()
    return torch.stack([reconstruction, reconstruction + output.kl.double().sum(1)], 1)


@dataclass(frozen=True)
class Histogram:
    """Histograms of a layer's aggregate posterior and of its prior: shares per bin."""

    edges: list[float]
    posterior: list[float]
    prior: list[float]
    standardised: bool  # of (z − E_p z)/σ_p, whose prior is N(0, 1)


@dataclass(frozen=True)
class Aggregate:
    """The aggregate posterior over some images, per layer from the top: (mean, standard error).

    E_x KL(q(z | x) ‖ p(z)) = I_q(x; z) + KL(E_x q(z | x) ‖ p(z)) (Hoffman & Johnson 2016).
    """

    images: int
    queries: int  # of these, whose own latents were looked up among all
    information: list[tuple[float, float]]  # I_q(x; z_top … z_l) nats: the layer and those above
    added: list[tuple[float, float]]  # I_q(x; z_l | z_{>l}) nats: the layer's own contribution
    residual: list[tuple[float, float] | None]  # E[((z − E_p z)/σ_p)²]: 1 if q equals p on average
    histograms: list[Histogram]

    @property
    def ceiling(self) -> float:
        """log N nats: the information that identifies one of N images, an upper limit."""
        return math.log(self.images)

    def saturated(self, layer: int) -> bool:
        """Whether the layers down to this one (nearly) identify every image."""
        return self.information[layer][0] > self.ceiling - SATURATION


@torch.no_grad()
def aggregate_posterior(
    model: LadderVAE,
    x: Tensor,
    seed: int,
    tick: Callable[[int], None],
    queries: int | None = None,
) -> Aggregate:
    """Mutual information of each layer and the images x (N, C, H, W), and aggregate posteriors.

    With x uniform on the N images, I_q(x; z) = E log q(z | x) / (1/N Σ_j q(z | x_j)) needs no
    bound: all pairs' densities are computed, of as many images at a time as memory allows. It is at
    most log N; near that it says only that the images are identified. The outer expectation is over
    `queries` images, evenly spaced, one draw of z each (None: all N): cost is N · queries passes,
    and standard errors are over these. The information of a context with a posterior variance is
    conditional on its dither. tick: called with the number of pairs done.
    """
    model.eval()
    n, rows = len(x), rows_that_fit(model, x[:1])
    count = min(queries or n, n)
    noise = Noise.keyed(torch.arange(n, device=x.device), seed, NoisePurpose.AGGREGATE)
    parts = list(zip(x.split(rows), noise.keys.split(rows), strict=True))
    latents = [model(images, noise=Noise(keys)).latents for images, keys in parts]
    asked = evenly_spaced(n, count).to(x.device)
    information = _information(model, x, latents, asked, rows, tick)  # (L, queries)
    added = information.diff(dim=0, prepend=torch.zeros_like(information[:1]))
    prior_noise = Noise.keyed(torch.arange(n, device=x.device), seed, NoisePurpose.PRIOR)
    top = [latent.z for latent in model.decoder.sample_top(n, prior_noise, 1.0)]
    layers = list(zip(*latents, strict=True))
    samples = [*top, *(None for _ in layers[len(top) :])]
    pairs = [_against_prior(*pair, prior_noise) for pair in zip(layers, samples, strict=True)]
    return Aggregate(
        images=n,
        queries=count,
        information=[mean_and_error(row) for row in information],
        added=[mean_and_error(row) for row in added],
        residual=[residual for residual, _ in pairs],
        histograms=[histogram for _, histogram in pairs],
    )


def _information(
    model: LadderVAE,
    x: Tensor,
    latents: list[list[Latent]],
    asked: Tensor,
    rows: int,
    tick: Callable[[int], None],
) -> Tensor:
    """log q(z_i | x_i) / (1/N Σ_j q(z_i | x_j)) of layers 0 … l together: (L, queries), float64.

    latents: of each part of x, `rows` images long. asked: the images i, ascending, (queries,).
    """
    values = [torch.cat([latent.z for latent in layer]) for layer in zip(*latents, strict=True)]
    own, everything, first, places = [], None, 0, asked.cpu()
    for images, part in zip(x.split(rows), latents, strict=True):
        features, n = model.encode(images), len(images)
        found = []
        for i in asked.split(max(1, rows // n)):
            z = [value[i] for value in values]
            found.append(_log_densities(model, features, part, z).cumsum(0))
            tick(len(i) * n)
        total = torch.cat(found, 1)  # (L, queries, n)
        here = ((first <= places) & (places < first + n)).nonzero().squeeze(1)
        own.append(total[:, here, places[here] - first])
        summed = total.logsumexp(2)
        everything = summed if everything is None else torch.logaddexp(everything, summed)
        first += n
    return torch.cat(own, 1) - everything + math.log(len(x))


def _log_densities(
    model: LadderVAE, features: list[Tensor], latents: list[Latent], z: list[Tensor]
) -> Tensor:
    """log q(z_l of image i | z_{>l} of image i, x_j): (L, I, J) [l, i, j], float64.

    features: the encoder's of the images j; latents: a posterior pass of them; z: of the images i.
    """
    count, n, tops = len(z[0]), len(features[0]), model.decoder.num_top
    repeated = [value.repeat_interleave(n, 0) for value in z]  # (I·J, w, h, h)
    densities = [_of_every_image(*pair) for pair in zip(latents[:tops], z, strict=False)]
    noise = Noise.keyed(torch.arange(count * n, device=z[0].device))  # nothing is drawn
    inferred, _ = model.decoder.top_down(
        count * n, repeated[:tops], repeat_rows(features, count), repeated[tops:], noise
    )
    for latent in inferred:
        densities.append(sum_per_image(latent.q.log_prob(latent.z)).view(count, n))
    return torch.stack([density.cpu().double() for density in densities])


def _of_every_image(latent: Latent, z: Tensor) -> Tensor:
    """log q(each of z | x_j) of a top latent, for every image j: (len(z), J)."""
    active = latent.p.active_mask(latent.z)
    return torch.stack([sum_per_image(latent.q.log_prob(one) * active) for one in z.split(1)])


def _against_prior(
    parts: Sequence[Latent], samples: Tensor | None, noise: Noise
) -> tuple[tuple[float, float] | None, Histogram]:
    """The layer's mean squared residual, and the histograms of its values and of its prior."""
    z = torch.cat([latent.z for latent in parts])
    residuals = [latent.p.residuals(latent.z) for latent in parts]
    if residuals[0] is not None:
        residuals = torch.cat(residuals).double().flatten(1).cpu()
        edges = torch.linspace(-RESIDUALS, RESIDUALS, BINS + 1, dtype=torch.float64)
        prior = torch.special.ndtr(edges).diff()
        error = mean_and_error(residuals.square().mean(1))
        return error, Histogram(edges.tolist(), _shares(residuals, edges), prior.tolist(), True)
    p = parts[0].p
    if samples is None:
        samples = p.sample_n(len(z), noise, 1.0)
    active = torch.cat([latent.p.active_mask(latent.z) for latent in parts])
    bins = min(BINS, p.num_levels or BINS)
    edges = torch.linspace(-1.0, 1.0, bins + 1, dtype=torch.float64)
    shares = [_shares(values[active].double().cpu(), edges) for values in (z, samples)]
    return None, Histogram(edges.tolist(), *shares, False)


def _shares(values: Tensor, edges: Tensor) -> list[float]:
    """The share of the values in each bin; values beyond the edges are in none."""
    counts, _ = torch.histogram(values.flatten().contiguous(), edges)
    return (counts / values.numel()).tolist()
