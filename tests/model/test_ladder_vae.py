"""The whole model: bounds against an evidence that can be integrated, shapes, determinism."""

import itertools
import math

import pytest
import torch

from datasets.loaders import EvaluationBatches
from model.diffusion import DiffusionPrior
from model.ladder_vae import LadderVAE
from model.layers import BlockStyle, decoder_block, encoder_block, last_conv
from model.noise import Noise
from model.scales import layout
from tests.conftest import TINY_UNET, compose, randomised, shrunk
from tests.model.test_diffusion import exact_log_prob
from utils.evaluation.bound import estimate_nll
from utils.settings.build import build_model

TOY = [
    "dataset.image_size=2",
    "model.latent_scales=[2]",
    "model.latent_width=[1]",
    "model.num_ch=8",
    "model.likelihood=bernoulli",
    "dataset.levels=2",
    "model.start_scale_at_x=false",
]
TOY_CONTEXT = [
    *TOY,
    "model.ctx_size=1",
    "model.decoder.condition_on_last=false",
    "model.decoder.z_L_prior.T=2",
    "model.decoder.z_L_prior.model.model_channels=32",
    "model.decoder.z_L_prior.model.num_res_blocks=1",
]
LEVELS = [-0.75, -0.25, 0.25, 0.75]  # of a context of two bits
X = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).view(1, 1, 2, 2)


def toy(experiment: str, overrides: list[str]) -> LadderVAE:
    """A float64 model of 2×2 binary images with random weights."""
    torch.manual_seed(3)
    model = randomised(build_model(compose(experiment, *overrides)), 0.4)
    for block in model.decoder.blocks:  # posteriors near enough for weights that converge
        last_conv(block.posterior_net).weight.data.mul_(0.2)
    if model.decoder.num_top:
        model.decoder.context.scale.fill_(16.0)
        model.decoder.context_prior.net.out[-1].weight.data.mul_(0.2)
    return model.double().eval()


def exact_evidence(model: LadderVAE, x: torch.Tensor, points: int = 81, levels=LEVELS) -> float:
    """log p(x) by quadrature over two scalar latents, and by the sum over a one-element context."""
    grid = torch.linspace(-6, 6, points, dtype=torch.float64)
    cell = (grid[1] - grid[0]) ** 2
    pairs = torch.cartesian_prod(grid, grid)
    given = [pairs[:, i].view(-1, 1, 1, 1) for i in (0, 1)]
    levels = torch.tensor(levels, dtype=torch.float64)
    tops = [[u.expand(len(pairs), 1, 1, 1)] for u in levels] if model.decoder.num_top else [[]]
    log_joint = []
    for top in tops:
        latents, head = model.decoder.top_down(
            len(pairs), top, None, given, Noise.fresh(len(pairs))
        )
        log_p = model.px(head).log_prob(x.expand(len(pairs), -1, -1, -1))
        for latent in latents:
            log_p = log_p + latent.p.log_prob(latent.z).flatten()
        log_joint.append(log_p.logsumexp(0) + cell.log())
    log_joint = torch.stack(log_joint)
    if len(tops) > 1:
        log_joint = log_joint + exact_log_prob(model.decoder.context_prior, levels)
    return log_joint.logsumexp(0).item()


@pytest.mark.parametrize(
    ("experiment", "overrides"), [("digits_ladder", TOY), ("digits_dct_ladder", TOY_CONTEXT)]
)
@torch.no_grad()
def test_iwae_bounds_the_evidence_and_grows_with_k(experiment, overrides):
    """Over all 16 binary images the evidence is 1; over 400 seeds the estimate stays below it."""
    model = toy(experiment, overrides)
    images = [
        torch.tensor(bits, dtype=torch.float64).view(1, 1, 2, 2)
        for bits in itertools.product([-1.0, 1.0], repeat=4)
    ]
    evidence = [math.exp(exact_evidence(model, x)) for x in images]
    assert sum(evidence) == pytest.approx(1.0, abs=1e-4)
    exact, seeds = exact_evidence(model, X), 400
    x = X.expand(seeds, -1, -1, -1)
    means = []
    for k in (1, 4, 32):
        noise = Noise.keyed(torch.arange(seeds), k)
        found = model.log_likelihood(x, k, noise=noise)
        error = found.std().item() / math.sqrt(seeds)
        assert found.mean().item() <= exact + 4 * error
        means.append(found.mean().item())
    assert means[0] < means[1] < means[2]
    if not model.decoder.num_top:  # with a context, q(u | x) reaches two of its levels only
        found = model.log_likelihood(x[:50], 4096, noise=Noise.keyed(torch.arange(50), 0))
        assert found.mean().item() == pytest.approx(exact, abs=0.02)


@torch.no_grad()
def test_estimates_depend_on_keys_not_on_batches_or_chunks():
    model = build_model(compose("digits_dct_ladder", *shrunk("digits_dct_ladder"))).eval()
    x = torch.rand(6, 1, 8, 8) * 2 - 1
    for estimator in ("iwae", "published"):
        whole = model.log_likelihood(x, 7, estimator, noise=Noise.keyed(torch.arange(6), 1))
        part = model.log_likelihood(
            x[4:], 7, estimator, noise=Noise.keyed(torch.arange(4, 6), 1), max_rows=4
        )
        torch.testing.assert_close(part, whole[4:], rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_elbo_is_the_mean_of_one_sample_weights():
    """E[log w] over samples equals −nelbo: the analytic and the sampled KL agree."""
    model = toy("digits_dct_ladder", TOY_CONTEXT)
    seeds = 4000
    x = X.expand(seeds, -1, -1, -1)
    out = model(x, noise=Noise.keyed(torch.arange(seeds), 1))
    elbo = -(out.reconstruction + out.kl.sum(1))
    noise = Noise.keyed(torch.arange(seeds), 2)
    weights = model.log_likelihood(x, 1, "iwae", noise=noise, paths=1)
    error = math.hypot(elbo.std(), weights.std()) / math.sqrt(seeds)
    assert elbo.mean().item() == pytest.approx(weights.mean().item(), abs=4 * error)


@pytest.mark.parametrize("prior", ["network", "gaussian", "standard", "ddgm"])
def test_top_priors_of_the_plain_ladder(prior):
    overrides = [*shrunk("digits_ladder"), f"model/decoder/z_L_prior={prior}"]
    if prior == "ddgm":
        overrides += ["model.decoder.z_L_prior.model.model_channels=16"]
    model = build_model(compose("digits_ladder", *overrides))
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    out = model(x)
    (out.reconstruction + out.kl.sum(1)).mean().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert out.kl.isfinite().all()
    if prior == "ddgm":
        assert out.latents[0].q.mean.abs().max() <= 1
    assert model.eval().sample(2).shape == (2, 1, 8, 8)
    for estimator in ("iwae", "published"):
        assert model.log_likelihood(x, 2, estimator).isfinite().all()


@pytest.mark.parametrize(
    "option",
    [
        *(f"model.decoder.ctx_posterior_var={kind}" for kind in ("fixed", "train", "conditional")),
        "model.decoder.ctx_type=downsample",
        "model.decoder.z_L_prior.parametrization=eps",
        "model.decoder.z_L_prior.parametrization=x_var",
        "model.decoder.z_L_prior.t_sample=loss_aware",
        "model.decoder.z_L_prior.beta_schedule=cosine",
        "model.decoder.disconnect=true",
        "model.decoder.var_mode=log",
        "model.decoder.num_postprocess_blocks=2",
        "model.decoder.num_blocks_per_scale=2",
        "model.encoder.num_init_blocks=1",
        "model/encoder=small_ladder",
        "model.batch_norm=true",
        "model.weight_norm=true",
        "model.activation=gelu",
        "model.scale_ch_mult=1.5",
        "model.start_scale_at_x=true",
        "model.likelihood=bernoulli",
        "model.likelihood=gaussian",
        "model.likelihood=logistic_mixture",
    ],
)
def test_every_choice_trains_samples_and_is_scored(option):
    torch.manual_seed(0)
    settings = compose("digits_dct_ladder", *shrunk("digits_dct_ladder"), option)
    model = build_model(settings).train()
    images = torch.randint(0, 17, (6, 1, 8, 8))
    model.fit_context(images.byte(), 16)
    x = images / 8.0 - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(10):
        out = model(x, noise=Noise.keyed(torch.arange(6), 0))
        loss = (out.reconstruction + out.kl.sum(1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    model.eval()
    assert model.sample(3, 0.7).abs().max() <= 1
    assert model.reconstruct(x, 2).isfinite().all()
    iwae, published = (model.log_likelihood(x, 4, e) for e in ("iwae", "published"))
    assert iwae.isfinite().all() and published.isfinite().all()


@pytest.mark.parametrize("experiment", ["digits_dct_ladder", "digits_ladder"])
@torch.no_grad()
def test_public_names(experiment):
    model = randomised(build_model(compose(experiment, *shrunk(experiment))), 0.05).eval()
    x = torch.rand(3, 1, 8, 8) * 2 - 1
    out = model(x)
    assert out.kl.shape == (3, len(out.latents)) and out.px.log_prob(x).shape == (3,)
    for latent in out.latents:
        for law in (latent.q, latent.p):
            assert law.mean.shape[-3:] == law.stddev.shape[-3:] == latent.z.shape[1:]
            assert law.log_prob(latent.z).isfinite().all()
    assert out.px.mean.shape == out.px.sample().shape == x.shape
    for n, temperature in ((2, 1.0), (3, 0.0), (1, 0.5)):
        draws = model.sample(n, temperature)
        assert draws.shape == (n, 1, 8, 8) and draws.abs().max() <= 1
    for keep in range(len(out.latents) + 1):
        assert model.reconstruct(x, keep).shape == x.shape
    with pytest.raises(ValueError, match="num_samples=0"):
        model.log_likelihood(x, 0)
    with pytest.raises(ValueError, match="estimator='exact'"):
        model.log_likelihood(x, 1, "exact")


@pytest.mark.parametrize("experiment", ["digits_dct_ladder", "cifar_dct_ladder"])
@torch.no_grad()
def test_temperature_zero_is_deterministic(experiment):
    settings = compose(experiment, *shrunk(experiment))
    model = randomised(build_model(settings), 0.05).eval()
    x = torch.rand(2, *model.image_shape) * 2 - 1
    outs = [model(x, temperature=0, noise=Noise.keyed(torch.arange(2), s)) for s in (1, 2)]
    for a, b in zip(*(out.latents for out in outs), strict=True):
        assert torch.equal(a.z, b.z)
    assert torch.equal(outs[0].reconstruction, outs[1].reconstruction)
    samples = [model.sample(2, 0.0, Noise.keyed(torch.arange(2), s)) for s in (1, 2)]
    assert torch.equal(*samples)


@torch.no_grad()
def test_keeping_all_latents_reconstructs_and_keeping_none_ignores_x():
    model = randomised(build_model(compose("digits_ladder", *shrunk("digits_ladder"))), 0.1).eval()
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    rebuilt = model.reconstruct(x, 6, temperature=0)
    torch.testing.assert_close(rebuilt, model(x, temperature=0).px.mean)
    noise = [Noise.keyed(torch.arange(4), 9) for _ in range(2)]
    ignored = [model.reconstruct(y, 0, noise=n) for y, n in zip((x, -x), noise, strict=True)]
    torch.testing.assert_close(*ignored)


def test_every_block_starts_as_its_skip_and_the_priors_at_zero():
    torch.manual_seed(0)
    style = BlockStyle(0.5)
    x = torch.randn(2, 6, 5, 5)
    for block in (encoder_block(6, 6, style), decoder_block(6, 6, style)):
        assert torch.equal(block(x), x)
    assert encoder_block(6, 4, style)(x).shape == (2, 4, 5, 5)
    model = build_model(compose("digits_ladder", *shrunk("digits_ladder")))
    p, features = model.decoder.blocks[0].prior(torch.randn(2, 16, 2, 2), Noise.fresh(2))
    assert not p.mean.any() and not features.any()


def test_weight_and_batch_norm_sit_where_they_should():
    style = BlockStyle(1.0, weight_norm=True)
    encoder_names = encoder_block(4, 4, style).state_dict()
    decoder_names = decoder_block(4, 4, style).state_dict()
    assert sum("original0" in n for n in encoder_names) == 4
    assert sum("original0" in n for n in decoder_names) == 3
    batch = decoder_block(4, 4, BlockStyle(batch_norm=True))
    assert sum("running_mean" in n for n in batch.state_dict()) == 5
    assert (
        sum(
            "running_mean" in n
            for n in encoder_block(4, 4, BlockStyle(batch_norm=True)).state_dict()
        )
        == 4
    )


def test_layout():
    scales = layout(32, [10, 5, 5, 2, 0, 1], [8, 8, 8, 8, 0, 8], 380, 1, True)
    assert [s.size for s in scales] == [32, 16, 8, 4, 1]
    assert [s.factor for s in scales] == [1, 2, 2, 2, 4]
    scales = layout(28, [4, 4], [1, 1], 32, 1.25, False)
    assert [(s.size, s.channels, s.factor) for s in scales] == [(14, 32, 2), (7, 40, 2)]
    assert [s.channels for s in layout(16, [1, 0, 1], [1, 0, 1], 10, 1.55, True)] == [10, 23]


def test_half_precision_keeps_the_bound_in_float32():
    model = build_model(compose("digits_dct_ladder", *shrunk("digits_dct_ladder")))
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, noise=Noise.keyed(torch.arange(2), 0))
    assert out.kl.dtype == out.reconstruction.dtype == torch.float32
    full = model(x, noise=Noise.keyed(torch.arange(2), 0))
    assert torch.equal(out.latents[0].z, full.latents[0].z)  # the context is never halved
    torch.testing.assert_close(out.kl.sum(1), full.kl.sum(1), rtol=0.05, atol=0.5)


@torch.no_grad()
@pytest.mark.parametrize(("top", "per_context"), [("context", 2), ("ddgm", 4)])
def test_an_estimate_uses_no_random_number_twice(top, per_context, monkeypatch):
    """Nor shares one between purposes: target, contexts, their diffusion paths, samples."""
    dct = top == "context"
    experiment = "digits_dct_ladder" if dct else "digits_ladder"
    overrides = [] if dct else [f"model/decoder/z_L_prior={top}", f"{TINY_UNET}.model_channels=16"]
    model = build_model(compose(experiment, *shrunk(experiment), *overrides)).eval()
    drawn, bits = [], Noise._bits

    def recorded(noise, count):
        drawn.append(bits(noise, count).flatten())
        return drawn[-1].view(len(noise.keys), count)

    monkeypatch.setattr(Noise, "_bits", recorded)
    options = {"paths": 3, "per_context": per_context, "max_rows": 6}
    model.estimate(torch.rand(2, 1, 8, 8), 5, noise=Noise.keyed(torch.arange(2), 1), **options)
    numbers = torch.cat(drawn)
    assert len(numbers.unique()) == len(numbers) > 500


@torch.no_grad()
@pytest.mark.parametrize("prior", ["network", "ddgm"])
def test_as_many_paths_as_asked_for(prior, monkeypatch):
    """Of the plain ladder's diffusion prior too, with which every sample of z has its own."""
    overrides = [f"model/decoder/z_L_prior={prior}"]
    overrides += [f"{TINY_UNET}.model_channels=16"] if prior == "ddgm" else []
    model = build_model(compose("digits_ladder", *shrunk("digits_ladder"), *overrides)).eval()
    paths, weight = [], DiffusionPrior.importance_weight
    monkeypatch.setattr(
        DiffusionPrior, "importance_weight", lambda *a: paths.append(a[-1]) or weight(*a)
    )
    batches = EvaluationBatches(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), 16, 3)
    found, _ = estimate_nll(model, batches, "iwae", 4, 3, 2, 0, lambda n: None)
    assert found.prior_samples == (3 if paths else None) and found.per_context is None
    assert set(paths) == ({3} if prior == "ddgm" else set())
