"""What the layers know about the image: interventions, mutual information, aggregate posteriors."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from model.distributions import sum_per_image
from model.estimators import repeat_rows
from model.latent import Latent
from model.noise import Noise, NoisePurpose
from utils.evaluation.bound import rows_that_fit
from utils.evaluation.collapse import mean_and_error
from utils.processes import collectives

BINS = 32  # of histograms, at most: a context of fewer levels has one for each
RESIDUALS = 4.0  # where histograms of standardised latents end


@dataclass(frozen=True)
class Intervention:
    """The images' bound with some layers' latents drawn from their priors: (N,) nats, float64."""

    kept: tuple[bool, ...]  # the layers inferred from the image, from the top
    reconstruction: Tensor
    nelbo: Tensor  # reconstruction + KL of the layers kept: a bound on −log p(x)


def plans(layers: int) -> list[tuple[bool, ...]]:
    """Which layers to keep: the top 0, 1, … all of them; then all but one, from the top.

    All but the lowest is there once: it is also the top layers − 1.
    """
    top = [tuple(layer < k for layer in range(layers)) for k in range(layers + 1)]
    without = [tuple(layer != one for layer in range(layers)) for one in range(layers - 1)]
    return top + without


@torch.no_grad()
def interventions(
    model: LadderVAE, batches: EvaluationBatches, seed: int, tick: Callable[[int], None]
) -> dict[tuple[bool, ...], Intervention]:
    """Every plan's bound over the images of all processes, by plan; the same noise in each.

    With importance samples instead of one, every plan would come closer to the same log p(x), and
    the difference would measure K. One sample measures what the posterior does without the layer.
    """
    model.eval()
    wanted = plans(model.num_latents)
    places, found = [], []
    for batch in batches:
        rows = []
        for kept in wanted:
            noise = Noise.keyed(batch.ids, seed, NoisePurpose.INTERVENTION)
            out = model.infer(batch.x, kept, noise=noise)
            reconstruction = out.reconstruction.double()
            rows.append(torch.stack([reconstruction, reconstruction + out.kl.double().sum(1)], 1))
        places.append(batch.ids.cpu())
        found.append(torch.stack(rows, 1).cpu())  # (B, plans, 2)
        tick(len(batch.ids))
    table = collectives.by_image(places, found, len(batches.images))
    return {
        kept: Intervention(kept, *table[:, index].unbind(1)) for index, kept in enumerate(wanted)
    }


@dataclass(frozen=True)
class Histogram:
    """Shares of a layer's values and of its prior's in bins between `edges`."""

    edges: list[float]
    posterior: list[float]
    prior: list[float]
    standardised: bool  # values are (z − E_p z)/σ_p, whose prior is N(0, 1)


@dataclass(frozen=True)
class Aggregate:
    """The posterior averaged over a number of images, per layer from the top; (mean, error)s.

    E_x KL(q(z | x) ‖ p(z)) = I_q(x; z) + KL(E_x q(z | x) ‖ p(z)) (Hoffman & Johnson 2016).
    """

    images: int
    information: list[tuple[float, float]]  # I_q(x; z_top … z_l) nats: the layer and those above
    added: list[tuple[float, float]]  # I_q(x; z_l | z_{>l}) nats: what the layer adds to it
    residual: list[tuple[float, float] | None]  # E of ((z − E_p z)/σ_p)², 1 where q is p on average
    histograms: list[Histogram]

    @property
    def ceiling(self) -> float:
        """log N nats: as much as telling N images apart can take."""
        return math.log(self.images)

    def saturated(self, layer: int) -> bool:
        """Whether the layers down to this one tell (nearly) all of the images apart."""
        return self.information[layer][0] > self.ceiling - 0.1


@torch.no_grad()
def aggregate_posterior(
    model: LadderVAE, x: Tensor, seed: int, tick: Callable[[int], None]
) -> Aggregate:
    """Mutual information of each layer and the images x (N, C, H, W), and aggregate posteriors.

    With x uniform on the N images, I_q(x; z) = E log q(z | x) / (1/N Σ_j q(z | x_j)) needs no
    bound: all N² densities are computed. It is at most log N, and what it says beyond is only that
    the layer tells these images apart. Errors are over the images' draws of z. A context with a
    posterior variance counts its information given its dither.
    """
    model.eval()
    noise = Noise.keyed(torch.arange(len(x), device=x.device), seed, NoisePurpose.AGGREGATE)
    latents = model(x, noise=noise).latents
    total = _log_densities(model, x, latents, noise, tick).cumsum(0)  # (L, N, N)
    own = total.diagonal(dim1=1, dim2=2)
    information = own - total.logsumexp(2) + math.log(len(x))  # (L, N)
    added = information.diff(dim=0, prepend=torch.zeros_like(information[:1]))
    drawn = Noise.keyed(torch.arange(len(x), device=x.device), seed, NoisePurpose.PRIOR)
    top = [latent.z for latent in model.decoder.sample_top(len(x), drawn, 1.0)]
    samples = [*top, *(None for _ in latents[len(top) :])]
    pairs = [_against_prior(*pair, drawn) for pair in zip(latents, samples, strict=True)]
    return Aggregate(
        images=len(x),
        information=[mean_and_error(row) for row in information],
        added=[mean_and_error(row) for row in added],
        residual=[residual for residual, _ in pairs],
        histograms=[histogram for _, histogram in pairs],
    )


def _log_densities(
    model: LadderVAE, x: Tensor, latents: list[Latent], noise: Noise, tick: Callable[[int], None]
) -> Tensor:
    """log q(z_l of image i | z_{>l} of image i, x_j): (L, N, N) [l, i, j], float64."""
    n, tops = len(x), model.decoder.num_top
    values, features = [latent.z for latent in latents], model.encode(x)
    found = torch.zeros(len(latents), n, n, dtype=torch.float64)
    at_once = max(1, rows_that_fit(model, x[:1]) // n)
    for chosen in torch.arange(n, device=x.device).split(at_once):
        count = len(chosen)
        mine = [z[chosen].repeat_interleave(n, 0) for z in values]
        for layer, latent in enumerate(latents[:tops]):
            found[layer, chosen.cpu()] = (
                torch.stack(
                    [sum_per_image(latent.q.log_prob(latent.z[[i]])) for i in chosen.tolist()]
                )
                .cpu()
                .double()
            )
        seen, _ = model.decoder.top_down(
            count * n, mine[:tops], repeat_rows(features, count), mine[tops:], noise
        )
        for layer, latent in enumerate(seen, tops):
            densities = sum_per_image(latent.q.log_prob(latent.z)).view(count, n)
            found[layer, chosen.cpu()] = densities.cpu().double()
        tick(count)
    return found


def _against_prior(
    latent: Latent, samples: Tensor | None, noise: Noise
) -> tuple[tuple[float, float] | None, Histogram]:
    """The layer's mean squared residual, and its values' histogram beside its prior's."""
    residuals = latent.p.residuals(latent.z)
    if residuals is not None:
        residuals = residuals.double().flatten(1).cpu()
        edges = torch.linspace(-RESIDUALS, RESIDUALS, BINS + 1, dtype=torch.float64)
        prior = torch.special.ndtr(edges).diff()
        error = mean_and_error(residuals.square().mean(1))
        return error, Histogram(edges.tolist(), _shares(residuals, edges), prior.tolist(), True)
    if samples is None:
        samples = latent.p.sample_n(len(latent.z), noise, 1.0)
    active = latent.p.active_mask(latent.z)
    bins = min(BINS, latent.p.num_levels or BINS)
    edges = torch.linspace(-1.0, 1.0, bins + 1, dtype=torch.float64)
    shares = [_shares(values[active].double().cpu(), edges) for values in (latent.z, samples)]
    return None, Histogram(edges.tolist(), *shares, False)


def _shares(values: Tensor, edges: Tensor) -> list[float]:
    """Shares of the values in each bin; those beyond the edges are in none."""
    counts, _ = torch.histogram(values.flatten().contiguous(), edges)
    return (counts / values.numel()).tolist()
