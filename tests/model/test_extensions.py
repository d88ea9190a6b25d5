"""A prior, a context, an estimator and an objective from outside the project: one class each."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from model import LadderVAE
from model.context import Context
from model.decoder import ContextDecoder, LadderDecoder
from model.density import Density
from model.encoder import LadderEncoder
from model.estimators import Estimator
from model.noise import Noise
from model.objective import BetaNelbo, LossModule, LossParts
from model.priors import Prior
from utils.evaluation.information import aggregate_posterior

LADDER = {
    "latent_scales": [2],
    "latent_width": [1],
    "num_ch": 8,
    "scale_ch_mult": 1,
    "block_ch_mult": 1,
    "activation": "silu",
    "weight_norm": False,
    "batch_norm": False,
    "start_scale_at_x": False,
    "likelihood": "bernoulli",
}
DECODER = {
    "num_blocks_per_scale": 1,
    "num_postprocess_blocks": 0,
    "var_mode": "softplus",
    "softplus_beta": 0.7,
    "disconnect": False,
    "condition_on_last": False,
}
CONTEXT = {
    "ctx_type": None,
    "ctx_posterior_var": "delta",
    "ctx_posterior_var_init": -10.0,
    "z_L_bits": 2,
}
IMAGES = torch.randint(0, 256, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
X = IMAGES / 127.5 - 1


def ladder(decoder, **changes) -> LadderVAE:
    """A ladder of two latents for 4×4 images, built without any settings."""
    torch.manual_seed(0)
    encoder = partial(LadderEncoder, num_init_blocks=0, num_blocks_per_scale=1)
    model = LadderVAE((1, 4, 4), encoder, decoder, **{**LADDER, **changes})
    model.fit_context(IMAGES, 255)
    return model.to_device("cpu")


def plain(prior) -> LadderVAE:
    """A plain ladder with the given top prior."""
    return ladder(partial(LadderDecoder, z_L_prior=prior, **DECODER))


@dataclass(frozen=True)
class LaplaceDensity(Density):
    """Laplace(0, 1), whose KL from a Gaussian is estimated from the sample."""

    shape: tuple[int, ...]

    def log_prob(self, z):
        """−|z| − log 2."""
        return -z.abs() - math.log(2.0)

    def kl_from(self, q, z):
        """log q − log p at the sample."""
        return q.log_prob(z) - self.log_prob(z)

    def sample_n(self, n, noise, temperature=1.0):
        """By the inverse of the distribution function."""
        centred = noise.uniform(*self.shape) - 0.5
        return -temperature * centred.sign() * torch.log1p(-2.0 * centred.abs())


class LaplacePrior(Prior):
    """A prior that counts the optimiser's steps."""

    def __init__(self, site):
        super().__init__()
        self.shape, self.steps = (site.width, site.size, site.size), 0

    def forward(self, s, noise):
        """p(z), no features."""
        return LaplaceDensity(self.shape), None

    def after_optimizer_step(self, total):
        """One more."""
        self.steps += 1


class UniformDensity(Density):
    """All levels alike."""

    def __init__(self, active, num_levels):
        self.active, self.num_levels = active, num_levels

    def log_prob(self, u):
        """−log of the number of levels."""
        return -math.log(self.num_levels) * self.active.expand_as(u)

    def kl_from(self, q, u):
        """Exact, as q's entropy is."""
        return -q.entropy() - self.log_prob(u)

    def sample_n(self, n, noise, temperature=1.0):
        """Continuous: the decoder brings it to the levels."""
        return 2.0 * noise.uniform(*self.active.shape) - 1.0


class UniformPrior(Prior):
    """A bounded prior, so that it can be a context's."""

    bounded = True

    def __init__(self, site):
        super().__init__()
        self.num_levels = 2**site.bits

    def context_density(self, active, noise):
        """p(u)."""
        return UniformDensity(active, self.num_levels)


class CornerContext(Context):
    """The upper left corner, less the training set's mean."""

    def __init__(self, channels, image_size, ctx_size):
        super().__init__()
        self.size, self.padding = ctx_size, image_size - ctx_size
        self.register_buffer("active", torch.ones(channels, ctx_size, ctx_size))
        self.register_buffer("mean", torch.zeros(()))

    def fit(self, images, max_value):
        """The mean on [−1, 1]."""
        self.mean.copy_(2.0 * images.float().mean() / max_value - 1.0)

    def encode(self, x):
        """Half the difference, so that it stays in [−1, 1]."""
        return 0.5 * (x[:, :, : self.size, : self.size] - self.mean)

    def render(self, u):
        """The corner, the rest at the mean."""
        corner = (2.0 * u).clamp(-1.0, 1.0)
        padded = torch.nn.functional.pad(corner, (0, self.padding, 0, self.padding))
        return (padded + self.mean).clamp(-1.0, 1.0)


def trains_and_is_scored(model: LadderVAE) -> None:
    """Loss with gradients, samples, reconstructions, both estimates and the information report."""
    loss, _, kl = LossModule(model.train(), BetaNelbo(free_bits_thr=1.0))(
        X, Noise.keyed(torch.arange(6), 0).keys, 1.0
    )
    loss.backward()
    assert kl.shape == (6, model.num_latents) and kl.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.after_optimizer_step(lambda sums: sums)
    model.eval()
    assert model.sample(3).shape == (3, 1, 4, 4) and model.reconstruct(X, 1).isfinite().all()
    for estimator in ("iwae", "published"):
        assert model.log_likelihood(X, 4, estimator).isfinite().all()
    found = aggregate_posterior(model, X, 0, lambda n: None)
    assert found.residual[0] is None and found.residual[1] is not None


def test_a_prior_of_the_plain_ladder():
    model = plain(LaplacePrior)
    trains_and_is_scored(model)
    assert model.decoder.priors[0].steps == 1 and not model.uses_paths


def test_free_bits_leave_an_estimated_kl_alone():
    output = plain(LaplacePrior)(X, noise=Noise.keyed(torch.arange(6), 0))
    first, second = output.latents
    assert not first.p.kl_is_exact and second.p.kl_is_exact
    floored = BetaNelbo(free_bits_thr=400.0)(output, 1.0).loss.item()
    elements = second.kl.flatten(1)
    expected = first.kl.flatten(1).sum(1) + elements.clamp(min=400.0 / elements.shape[1]).sum(1)
    expected = (output.reconstruction + expected).mean().item() / (16 * math.log(2))
    assert floored == pytest.approx(expected, rel=1e-5)


def test_a_context_and_its_prior():
    decoder = partial(
        ContextDecoder, z_L_prior=UniformPrior, context=CornerContext, **CONTEXT, **DECODER
    )
    model = ladder(decoder, ctx_size=2)
    assert model.decoder.context.mean.item() == pytest.approx(X.mean().item(), abs=1e-5)
    trains_and_is_scored(model)
    with torch.no_grad():
        kl = model(X).kl[:, 0]
    assert (kl <= 4 * math.log(4) + 1e-5).all() and (kl > 0).all()


class Constant(Estimator):
    """Every weight is e^3."""

    name, description = "constant", "of no use"
    is_bound, uses_prior_paths = False, False

    def log_weights(self, model, x, target, samples):
        """3 for each sample, one sample at a time."""
        for _ in range(samples.count):
            yield torch.full((1, len(x)), 3.0)


def test_an_estimator():
    log_p, effective = plain(LaplacePrior).estimate(X, 5, Constant())
    assert log_p.tolist() == pytest.approx([3.0] * 6)
    assert effective.tolist() == pytest.approx([5.0] * 6)


class ReconstructionOnly:
    """An autoencoder's loss; derived from nothing."""

    def beta(self, epoch: int) -> float:
        """No KL in any epoch."""
        return 0.0

    def __call__(self, output, beta: float) -> LossParts:
        """The mean reconstruction, nats."""
        return LossParts(output.reconstruction.mean(), output.reconstruction, output.kl)


def test_an_objective():
    model, objective = plain(LaplacePrior), ReconstructionOnly()
    keys = Noise.keyed(torch.arange(6), 0).keys
    loss, reconstruction, _ = LossModule(model, objective)(X, keys, objective.beta(3))
    assert loss.item() == pytest.approx(reconstruction.mean().item())


def test_an_unbounded_prior_is_refused_as_a_contexts():
    """By its class, and when a function that makes it has been called."""
    refusal = "z_L_prior of a context must be a diffusion model"
    with pytest.raises(ValueError, match=refusal):
        ContextDecoder.check_arguments(4, z_L_prior=LaplacePrior)
    ContextDecoder.check_arguments(4, z_L_prior=UniformPrior)
    with pytest.raises(ValueError, match=refusal):
        ladder(
            partial(
                ContextDecoder,
                z_L_prior=lambda site: LaplacePrior(site),
                context=CornerContext,
                **CONTEXT,
                **DECODER,
            ),
            ctx_size=2,
        )
