"""Interventions and information against what can be known exactly."""

import math

import pytest
import torch

from datasets.loaders import EvaluationBatches
from model.layers import last_conv
from model.noise import Noise, NoisePurpose
from tests.conftest import compose, randomised, shrunk
from tests.model.test_ladder_vae import TOY_CONTEXT, toy
from utils.evaluation import information
from utils.evaluation.information import aggregate_posterior, interventions, layer_masks
from utils.settings.build import build_model

IMAGES = torch.randint(0, 17, (40, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
BATCHES = EvaluationBatches(IMAGES, 16, 40)


def small(experiment: str, *overrides: str) -> torch.nn.Module:
    """A small random model."""
    torch.manual_seed(0)
    settings = compose(experiment, *shrunk(experiment), *overrides)
    return randomised(build_model(settings), 0.05).eval()


def silence(model, layer: int) -> None:
    """Make a latent block's posterior its prior: N(0, a constant) both."""
    block = model.decoder.blocks[layer]
    for net in (block.posterior_net, block.prior.net):
        for parameter in last_conv(net).parameters():
            torch.nn.init.zeros_(parameter)


def aggregate(model, x, seed=0):
    """Information about which of the images x it is."""
    return aggregate_posterior(model, x, seed, lambda n: None)


def test_masks_keep_the_top_and_leave_out_one():
    assert layer_masks(3) == [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, True, True),
        (False, True, True),
        (True, False, True),
    ]


@pytest.mark.parametrize("experiment", ["digits_ladder", "digits_dct_ladder"])
def test_interventions(experiment):
    """Everything kept is a plain pass; nothing kept is a draw from the prior, with no KL."""
    model = small(experiment)
    found = interventions(model, BATCHES, 3, lambda n: None)
    layers = model.num_latents
    assert set(found) == set(layer_masks(layers))
    x, ids = BATCHES.examples(40), torch.arange(40)
    with torch.no_grad():
        out = model(x, noise=Noise.keyed(ids, 3, NoisePurpose.INTERVENTION))
    whole = found[(True,) * layers]
    torch.testing.assert_close(whole.reconstruction, out.reconstruction.double())
    torch.testing.assert_close(whole.nelbo, (out.reconstruction + out.kl.sum(1)).double())
    none = found[(False,) * layers]
    assert torch.equal(none.nelbo, none.reconstruction)
    parts = EvaluationBatches(IMAGES, 16, 7)
    again = interventions(model, parts, 3, lambda n: None)
    for kept, one in found.items():
        torch.testing.assert_close(again[kept].nelbo, one.nelbo, rtol=1e-5, atol=1e-4)


def test_a_layer_that_copies_its_prior_is_worth_nothing():
    model = small("digits_ladder")
    silence(model, 2)
    found = interventions(model, BATCHES, 3, lambda n: None)
    whole = found[(True,) * 6].nelbo
    without = {
        layer: found[tuple(other != layer for other in range(6))].nelbo for layer in range(6)
    }
    torch.testing.assert_close(without[2], whole)
    assert all((without[layer] - whole).abs().max() > 1e-3 for layer in (0, 1, 3, 4, 5))
    found = aggregate(model, BATCHES.examples(40))
    assert found.added[2] == pytest.approx((0, 0), abs=1e-9)
    value, error = found.residual[2]
    assert abs(value - 1) < 4 * error and error > 0


def test_every_intervention_bounds_the_evidence():
    """On average over draws of everything; the evidence is by importance sampling, over u too."""
    model = toy("digits_dct_ladder", TOY_CONTEXT)
    x = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64).view(1, 1, 2, 2)
    x = x.expand(400, -1, -1, -1)
    evidence = model.log_likelihood(
        x[:20], 1000, noise=Noise.keyed(torch.arange(20), 5), paths=4
    ).logsumexp(0) - math.log(20)
    with torch.no_grad():
        for kept in layer_masks(model.num_latents):
            out = model.infer(x, kept, noise=Noise.keyed(torch.arange(400), 7))
            nelbo = out.reconstruction + out.kl.sum(1)
            error = nelbo.std() / 20
            assert nelbo.mean() + 4 * error > -evidence.item(), kept


def test_equal_images_hold_no_information_and_different_ones_at_most_log_n():
    model = small("digits_dct_ladder")
    same = aggregate(model, BATCHES.examples(1).expand(12, -1, -1, -1))
    for value, error in same.information:
        assert value == pytest.approx(0, abs=1e-4) and error < 1e-4
    found = aggregate(model, BATCHES.examples(40))
    values = [value for value, _ in found.information]
    assert found.ceiling == math.log(40) and max(values) <= math.log(40) + 1e-9
    assert found.information[0][0] > 1  # a context of nine numbers tells noise apart
    added = [value for value, _ in found.added]
    assert sum(added) == pytest.approx(values[-1])
    # sure posteriors tell all images apart
    for block in model.decoder.blocks[:1]:
        last_conv(block.posterior_net).weight.data.mul_(300)
    sure = aggregate(model, BATCHES.examples(40))
    assert sure.information[1][0] == pytest.approx(math.log(40), abs=1e-3) and sure.saturated(1)


def test_the_information_of_a_context_is_the_enumerated_one():
    """Three images, one number on four levels: I = Σ_u P(u | x) log P(u | x)/P(u), exactly."""
    model = toy("digits_dct_ladder", TOY_CONTEXT)
    x = torch.stack([torch.full((1, 2, 2), v, dtype=torch.float64) for v in (-0.3, 0.05, 0.2)])
    with torch.no_grad():
        (context,) = model.decoder.infer_top(x, Noise.keyed(torch.arange(3), 0), 1.0)
        q, chances = context.q, torch.zeros(3, 4, dtype=torch.float64)
        for level in range(4):
            u = torch.full((3, 1, 1, 1), -0.75 + 0.5 * level, dtype=torch.float64)
            chances[:, level] = q.log_prob(u).exp().flatten()
    torch.testing.assert_close(chances.sum(1), torch.ones(3, dtype=torch.float64))
    assert ((chances > 0.01) & (chances < 0.99)).any()
    ratio = (chances / chances.mean(0)).log()
    exact = torch.where(chances > 0, chances * ratio, 0.0).sum(1).mean().item()
    draws = torch.tensor([aggregate(model, x, seed).information[0][0] for seed in range(300)])
    assert abs(draws.mean() - exact) < 4 * draws.std() / 300**0.5
    assert draws.std() > 0


def test_all_pairs_are_the_pairs_one_by_one():
    model = small("digits_dct_ladder")
    x, noise = BATCHES.examples(5), Noise.keyed(torch.arange(5), 0)
    with torch.no_grad():
        latents = model(x, noise=noise).latents
        values = [latent.z for latent in latents]
        found = information._log_densities(model, model.encode(x), latents, values)
        for i, j in ((0, 0), (1, 4), (3, 2)):
            values = [latent.z[[i]] for latent in latents]
            features = model.encode(x[[j]])
            seen, _ = model.decoder.top_down(1, values[:1], features, values[1:], noise)
            own = [latent.q.log_prob(latent.z).sum().item() for latent in seen]
            assert found[1:, i, j].tolist() == pytest.approx(own, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("experiment", ["digits_ladder", "digits_dct_ladder"])
def test_information_in_blocks_is_that_of_all_at_once(experiment, monkeypatch):
    """Many images need no N × N table in memory; and queries may be fewer."""
    model, x, pairs = small(experiment), BATCHES.examples(10), []
    whole = aggregate(model, x)
    few = aggregate_posterior(model, x, 0, pairs.append, queries=4)
    assert sum(pairs) == 40 and (few.images, few.queries) == (10, 4)
    assert few.ceiling == whole.ceiling and few.histograms == whole.histograms
    monkeypatch.setattr(information, "rows_that_fit", lambda model, x: 3)
    for queries, wanted in ((None, whole), (4, few)):
        found = aggregate_posterior(model, x, 0, lambda n: None, queries)
        for name in ("information", "added"):
            pairs = zip(getattr(found, name), getattr(wanted, name), strict=True)
            assert all(a == pytest.approx(b, rel=1e-3, abs=1e-3) for a, b in pairs)
        for a, b in zip(found.histograms, wanted.histograms, strict=True):
            assert a.posterior == pytest.approx(b.posterior, abs=0.02)


def test_fewer_queries_are_spread_over_the_images(monkeypatch):
    """The images may be sorted by class; each query's own figure is that among all queries."""
    model, x = small("digits_dct_ladder"), BATCHES.examples(10)
    monkeypatch.setattr(information, "rows_that_fit", lambda model, x: 3)
    with torch.no_grad():
        noise = Noise.keyed(torch.arange(10), 0)
        parts = zip(x.split(3), noise.keys.split(3), strict=True)
        latents = [model(images, noise=Noise(keys)).latents for images, keys in parts]
        every, some = torch.arange(10), torch.tensor([1, 4, 5, 9])
        all_of, of_some = (
            information._information(model, x, latents, asked, 3, lambda n: None)
            for asked in (every, some)
        )
    torch.testing.assert_close(of_some, all_of[:, some], rtol=1e-4, atol=1e-4)
    asked = []
    monkeypatch.setattr(
        information, "_information", lambda *a: asked.append(a[3]) or torch.zeros(7, len(a[3]))
    )
    aggregate_posterior(model, x, 0, lambda n: None, queries=4)
    assert asked[0].tolist() == [0, 2, 5, 7]


def test_histograms_are_shares_of_posterior_and_prior():
    found = aggregate(small("digits_dct_ladder"), BATCHES.examples(40))
    context, *rest = found.histograms
    assert not context.standardised and len(context.edges) == 5  # two bits
    assert sum(context.posterior) == pytest.approx(1) and sum(context.prior) == pytest.approx(1)
    assert found.residual[0] is None
    for histogram in rest:
        assert histogram.standardised and 0.9 < sum(histogram.posterior) < 1.001
        assert sum(histogram.prior) == pytest.approx(1, abs=1e-3)


def test_a_diffusion_prior_of_the_plain_ladder_is_reported_on_too():
    overrides = ["model/decoder/z_L_prior=ddgm", "model.decoder.z_L_prior.T=3"]
    overrides += [f"model.decoder.z_L_prior.model.{key}" for key in ("model_channels=16",)]
    model = small("digits_ladder", *overrides)
    found = aggregate(model, BATCHES.examples(10))
    assert found.residual[0] is None and sum(found.histograms[0].prior) > 0
    interventions(model, BATCHES, 0, lambda n: None)
