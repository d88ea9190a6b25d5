"""Remedies against posterior collapse: what each guarantees, and what it does not."""

import itertools
import math

import pytest
import torch

from datasets.loaders import EvaluationBatches
from model.distributions import Gaussian
from model.layers import last_conv
from model.noise import Noise
from model.objective import BalancedNelbo, BetaNelbo, BetaSchedule, LossModule
from model.posteriors import posterior_form, rate, variance_ratio
from tests.conftest import compose, randomised, shrunk
from tests.model.test_ladder_vae import TOY, X, exact_evidence, toy
from utils.errors import ConfigError
from utils.evaluation.bound import posterior_collapse
from utils.evaluation.information import aggregate_posterior
from utils.settings.build import build_model, build_objective
from utils.settings.check import check_warm_up

DELTA = 2.0  # nats per latent
COMMITTED = ["model.decoder.posterior=committed", f"model.decoder.delta={DELTA}"]


def small(*overrides, experiment="digits_ladder", scale=0.3):
    """A small random model."""
    torch.manual_seed(0)
    settings = compose(experiment, *shrunk(experiment), *overrides)
    return randomised(build_model(settings), scale).eval()


def images(n=6):
    """(n, 1, 8, 8) in [−1, 1]."""
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("delta", [1e-4, 0.01, 0.02, 0.05, 0.0625, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0])
def test_the_variance_ratio_is_the_inverse_of_the_rate(delta):
    ratio = variance_ratio(delta)
    assert 0 < ratio < 1 and rate(ratio) == pytest.approx(delta, abs=1e-12, rel=1e-12)
    gaussians = (Gaussian(torch.zeros(()), torch.tensor(math.log(v))) for v in (ratio, 1.0))
    q, p = gaussians
    assert q.kl(p).item() == pytest.approx(delta, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
@pytest.mark.parametrize("experiment", ["digits_ladder", "digits_dct_ladder"])
@torch.no_grad()
def test_a_committed_rate_holds_for_every_element_image_and_weight(experiment, scale):
    model = small(*COMMITTED, experiment=experiment)
    for block in model.decoder.blocks:
        last_conv(block.posterior_net).weight.mul_(scale)
        last_conv(block.prior.net).weight.mul_(min(scale, 30.0))
    latents = model(images()).latents[model.decoder.num_top :]
    for latent in latents:
        floor = DELTA / latent.z[0].numel()
        assert latent.kl.isfinite().all() and (latent.kl >= floor - 1e-6).all()


@torch.no_grad()
def test_a_committed_rate_is_no_information():
    """With Δ = 0 every layer pays δ, and z knows nothing of x."""
    model = small(*COMMITTED)
    for block in model.decoder.blocks:
        conv = last_conv(block.posterior_net)
        conv.weight.zero_()
        conv.bias[: block.width], conv.bias[block.width :] = 0.0, -100.0
    for latent in model(images()).latents:
        expected = torch.full_like(latent.kl, DELTA / latent.z[0].numel())
        torch.testing.assert_close(latent.kl, expected, rtol=1e-3, atol=0)
    pixels = torch.randint(0, 17, (40, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
    batches = EvaluationBatches(pixels, 16, 40)
    report = posterior_collapse(model, batches, 0, 60, lambda n: None).report()
    assert report.kl == pytest.approx([DELTA] * model.num_latents, rel=1e-3)
    assert sum(report.active_low) == 0
    information = aggregate_posterior(model, batches.examples(20), 0, lambda n: None).information
    assert all(abs(value) < 1e-4 for value, _ in information)


def test_a_residual_posterior_moves_with_its_prior():
    form = posterior_form("residual", None, False, None)
    shift, raw = torch.tensor([0.5, -2.0]), torch.tensor([0.3, 9.0])
    for mean, logvar in ((0.0, 0.0), (300.0, -4.0)):
        p = Gaussian(torch.full((2,), mean), torch.full((2,), logvar))
        q = form(shift, raw, p)
        kl = 0.5 * (shift**2 + raw.clamp(max=5.0).exp() - 1.0 - raw.clamp(max=5.0))
        torch.testing.assert_close(q.kl(p), kl, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_diffusion_top_keeps_its_absolute_posterior():
    top = ["model/decoder/z_L_prior=ddgm", "model.decoder.z_L_prior.model.model_channels=16"]
    model = small("model.decoder.posterior=residual", *top)
    latents = model(images()).latents
    assert latents[0].q.mean.abs().max() <= 1 and latents[1].kl.isfinite().all()


@torch.no_grad()
def test_an_aggregated_head_does_not_see_the_state(monkeypatch):
    model = small("model.decoder.output=aggregate")
    given = [latent.z for latent in model(images()).latents]

    def head():
        return model.decoder.top_down(6, [], None, given, Noise.fresh(6))[1]

    before = head()
    for block in model.decoder.blocks[:-1]:
        monkeypatch.setattr(block.blocks, "forward", torch.randn_like)
    assert torch.equal(head(), before)
    assert not hasattr(model.decoder.blocks[-1], "z_conv")


@torch.no_grad()
def test_an_aggregated_head_is_affine_in_the_latents_and_tied_swaps_them():
    model = small("model.decoder.output=aggregate", "model.decoder.tied=true").double()
    z = [latent.z for latent in model(images().double()).latents]
    sizes = [value.shape[-1] for value in z]
    first, second = next(
        pair
        for pair in itertools.combinations(range(len(z)), 2)
        if sizes[pair[0]] == sizes[pair[1]]
    )

    def head(values):
        return model.decoder.head(model.decoder.direct(values))

    swapped = list(z)
    swapped[first], swapped[second] = z[second], z[first]
    torch.testing.assert_close(head(swapped), head(z))
    zero = [torch.zeros_like(value) for value in z]
    doubled = [2.0 * value for value in z]
    torch.testing.assert_close(head(doubled) - head(zero), 2.0 * (head(z) - head(zero)))


def test_every_latent_reaches_an_aggregated_head_from_the_start():
    settings = compose("digits_ladder", *shrunk("digits_ladder"), "model.decoder.output=aggregate")
    model = build_model(settings)
    z = [latent.z.detach().requires_grad_() for latent in model(images()).latents]
    _, head = model.decoder.top_down(6, [], None, z, Noise.fresh(6))
    model.px(head).log_prob(images().round()).sum().backward()
    assert all(value.grad.abs().max() > 0 for value in z)


@torch.no_grad()
def test_a_skip_of_nothing_is_the_plain_decoder():
    plain, skip = small(), small("model.decoder.output=skip")
    more = skip.state_dict().keys() - plain.state_dict().keys()
    added = sum(skip.state_dict()[name].numel() for name in more)
    latents, channels = skip.num_latents, skip.decoder.head[-1].in_channels
    width = skip.decoder.blocks[0].width
    assert added == latents * (width + 1) * channels
    skip.load_state_dict(plain.state_dict(), strict=False)
    noise = [Noise.keyed(torch.arange(6), 3) for _ in range(3)]
    different = skip(images(), noise=noise[0]).reconstruction
    for parameter in skip.decoder.direct.parameters():
        parameter.zero_()
    same, expected = (
        model(images(), noise=n).reconstruction
        for model, n in zip((skip, plain), noise[1:], strict=True)
    )
    assert torch.equal(same, expected) and not torch.equal(different, expected)


@pytest.mark.parametrize(
    "remedy",
    ["residual", "committed", "skip", "aggregate"],
)
@torch.no_grad()
def test_iwae_of_every_arm_bounds_its_evidence(remedy):
    model = toy("digits_ladder", [*TOY, f"remedy={remedy}"])
    exact, x = exact_evidence(model, X), X.expand(400, -1, -1, -1)
    means = []
    for k in (1, 8, 64):
        found = model.log_likelihood(x, k, noise=Noise.keyed(torch.arange(400), k))
        assert found.mean().item() <= exact + 4 * found.std().item() / 20
        means.append(found.mean().item())
    assert means[0] < means[1] < means[2]
    if remedy != "committed":  # whose posteriors are narrower than they should be
        assert means[2] == pytest.approx(exact, abs=0.2)


def test_cyclical_beta():
    beta = BetaSchedule(0.0, 0.5, cycles=4, ramp=0.5, epochs=4000)
    values = [beta(epoch) for epoch in range(4000)]
    assert sum(values) / 4000 == pytest.approx((1 - 0.5 / 2) * 0.5, rel=1e-3)
    assert values[-1] == 0.5 and values[:1000] == pytest.approx(values[3000:])
    assert [values[n] for n in (0, 250, 500, 999)] == pytest.approx([0.0, 0.25, 0.5, 0.5])
    once = BetaSchedule(0.0, 1.0, ramp=0.3, epochs=60)
    assert [once(n) for n in (0, 9, 18, 59)] == pytest.approx([0.0, 0.5, 1.0, 1.0])


def balanced(kl, steps=1.0) -> tuple[BalancedNelbo, list]:
    """An objective that remembers these KLs of digits_ladder's layers, and a pass's latents."""
    output = small()(images())
    objective = BalancedNelbo(BetaNelbo(BetaSchedule(0.0, 1.0, warmup=5)), len(kl))
    objective.kl.copy_(torch.as_tensor(kl))
    objective.steps.fill_(steps)
    return objective, output


def test_balancing_charges_little_where_there_is_little():
    kl = torch.tensor([0.1, 0.5, 0.02, 3.0, 8.0, 1.0])
    objective, output = balanced(kl)
    gamma = objective.weights(output.latents)
    assert gamma.mean().item() == pytest.approx(1.0)
    area = torch.tensor([latent.z.shape[-1] ** 2 / 3.0 for latent in output.latents])
    alpha = area / area.min()
    torch.testing.assert_close(gamma, _over_mean((kl + 0.01) / alpha))
    scaled = balanced(1000 * kl)[0].weights(output.latents)
    torch.testing.assert_close(scaled, _over_mean(kl / alpha), rtol=1e-2, atol=1e-3)
    equal = balanced(alpha - 0.01)[0].weights(output.latents)
    torch.testing.assert_close(equal, torch.ones(6))
    assert torch.equal(balanced(kl, steps=0.0)[0].weights(output.latents), torch.ones(6))


def _over_mean(g: torch.Tensor) -> torch.Tensor:
    return g / g.mean()


def test_balancing_leaves_the_context_and_a_full_weight_alone():
    output = small(experiment="digits_dct_ladder")(images())
    objective = BalancedNelbo(BetaNelbo(BetaSchedule(0.0, 1.0, warmup=5)), len(output.latents))
    objective.record_step(output.kl.mean(0), torch.tensor(True))
    gamma = objective.weights(output.latents)
    assert gamma[0] == 1 and gamma[1:].mean().item() == pytest.approx(1.0)
    parts, plain = objective(output, 1.0), BetaNelbo()(output, 1.0)
    assert torch.equal(parts.loss, plain.loss)
    assert objective(output, 0.5).loss != BetaNelbo()(output, 0.5).loss


def test_running_means_follow_accepted_steps_only():
    objective = BalancedNelbo(BetaNelbo(), 2)
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])
    objective.record_step(first, torch.tensor(False))
    assert objective.steps == 0 and not objective.kl.any()
    objective.record_step(first, torch.tensor(True))
    assert torch.equal(objective.kl, first)
    objective.record_step(second, torch.tensor(True))
    torch.testing.assert_close(objective.kl, 0.9 * first + 0.1 * second)


def test_the_gradient_of_a_balanced_loss_is_weighted():
    objective, output = balanced([0.1, 0.5, 0.02, 3.0, 8.0, 1.0])
    for latent in output.latents:
        latent.kl.retain_grad()
    objective(output, 0.4).loss.backward()
    gamma = objective.weights(output.latents)
    for latent, weight in zip(output.latents, gamma, strict=True):
        expected = 0.4 * weight.item() / (6 * 64 * math.log(2))
        torch.testing.assert_close(latent.kl.grad, torch.full_like(latent.kl, expected))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["model.kl_balance=true"], "model.kl_balance=true weighs the layers while"),
        (["model.beta_cycles=4"], "changes nothing where beta_start and beta_end"),
        (["model.beta_start=0", "model.beta_ramp=0.05"], "leaves 3 of 60 epochs to each rise"),
        (
            ["model.beta_start=0", "model.beta_cycles=7", "model.warmup=9"],
            "leaves 8.57|does not end",
        ),
        (["model.beta_start=0", "model.beta_ramp=0.5", "model.warmup=9"], "say it twice"),
        (["remedy=committed", "model.free_bits_thr=0.5"], "free_bits_thr=0.5 is never reached"),
        (["model.decoder.posterior=committed"], "model.decoder.delta is missing"),
        (["model.decoder.delta=1"], r"model.decoder.delta=1(\.0)? needs posterior=committed"),
        (["remedy=committed", "model/decoder/z_L_prior=ddgm"], "needs Gaussian priors"),
        (["model.decoder.tied=true"], "model.decoder.tied=true needs output=skip"),
        (
            ["remedy=aggregate", "model.decoder.tied=true", "model.latent_width=[1,2]"],
            "needs latents of one width, not \\[1, 2\\]",
        ),
    ],
)
def test_what_nothing_would_feel_is_refused(overrides, complaint):
    with pytest.raises((ConfigError, ValueError), match=complaint) as caught:
        build_model(compose("digits_ladder", *overrides))
    assert str(caught.value).startswith("model.") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["model.warmup=30"], "model.warmup=30 changes nothing where"),
        (["model.beta_start=0"], r"model.beta_start=0.0 and model.beta_end=1.0 differ, and"),
        (["model.beta_end=2"], r"model.beta_start=1.0 and model.beta_end=2.0 differ, and"),
        (["model.beta_start=0", "model.warmup=60"], "leaves none of train.max_epochs=60 at"),
    ],
)
def test_a_warm_up_that_training_would_not_feel_is_refused(overrides, complaint):
    settings = compose("digits_ladder", *overrides)  # as a run of an earlier version has them
    with pytest.raises(ConfigError, match=complaint):
        check_warm_up(settings)
    check_warm_up(compose("digits_ladder", "model.beta_start=0", "model.warmup=59"))
    check_warm_up(compose("digits_ladder", "model.beta_start=4", "model.beta_end=4"))


def test_where_every_kl_is_an_estimate_nothing_is_balanced():
    torch.manual_seed(0)
    one = ["model.latent_scales=[1]", "model.latent_width=[4]", "model/decoder/z_L_prior=ddgm"]
    warm = ["model.kl_balance=true", "model.beta_start=0", "model.warmup=5"]
    settings = compose("digits_ladder", *shrunk("digits_ladder"), *one, *warm)
    model, objective = build_model(settings), build_objective(settings)
    output = model(torch.zeros(3, 1, 8, 8), noise=Noise.keyed(torch.arange(3), 0))
    objective.record_step(torch.ones(1), torch.tensor(True))
    nelbo = objective.nelbo(output, 0.4)
    assert torch.equal(objective(output, 0.4).loss, nelbo.loss)


@pytest.mark.parametrize("remedy", ["none", "skip", "aggregate"])
def test_a_ladder_of_one_latent(remedy):
    one = ["model.latent_scales=[1]", "model.latent_width=[4]", f"remedy={remedy}"]
    torch.manual_seed(0)
    model = build_model(compose("digits_ladder", *shrunk("digits_ladder"), *one))
    x = torch.zeros(3, 1, 8, 8)
    assert model(x, noise=Noise.keyed(torch.arange(3), 0)).kl.shape == (3, 1)
    assert model.sample(2).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("remedy", ["none", "free_bits", "warmup", "cyclical", "balanced"])
def test_remedies_of_the_loss_leave_the_model_as_it_is(remedy):
    plain, other = (compose("digits_ladder", f"remedy={name}") for name in ("none", remedy))
    torch.manual_seed(0)
    expected = build_model(plain).state_dict()
    torch.manual_seed(0)
    found = build_model(other).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    module = LossModule(build_model(other), build_objective(other))
    assert module(images(), Noise.keyed(torch.arange(6), 0).keys, 0.5)[0].isfinite()
