"""Latents out of a model and into it: exact there and back, and what each layer changes."""

import pytest
import torch

from model.distributions import sum_per_image
from model.levels import quantise
from model.noise import Noise
from tests.conftest import compose, randomised, shrunk
from utils.settings.build import build_model

KINDS = {
    "plain": ("digits_ladder",),
    "context": ("digits_dct_ladder",),
    "gaussian context": ("digits_dct_ladder", "model.decoder.ctx_posterior_var=train"),
    "residual": ("digits_ladder", "model.decoder.posterior=residual"),
    "committed": (
        "digits_dct_ladder",
        "model.decoder.posterior=committed",
        "model.decoder.delta=0.5",
    ),
    "skip": ("digits_dct_ladder", "model.decoder.output=skip"),
    "aggregate": ("digits_ladder", "model.decoder.output=aggregate"),
}
X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def noise(salt: int = 0) -> Noise:
    """Streams of the images."""
    return Noise.keyed(torch.arange(len(X)), salt)


@pytest.fixture(params=KINDS)
def model(request):
    """A small random model of each kind."""
    torch.manual_seed(0)
    experiment, *overrides = KINDS[request.param]
    settings = compose(experiment, *shrunk(experiment), *overrides)
    return randomised(build_model(settings), 0.05).eval()


@torch.no_grad()
def test_encoded_and_decoded_is_the_pass_itself(model):
    """Bit for bit, with the same noise; each layer's figures are those of the pass."""
    output, layers = model(X, noise=noise()), model.latents(X, noise=noise())
    assert torch.equal(model.decode(layers).mean, output.px.mean)
    assert [tuple(layer.sample.shape[1:]) for layer in layers] == list(model.latent_shapes)
    for layer, latent in zip(layers, output.latents, strict=True):
        assert torch.equal(layer.sample, latent.z) and layer.mean.shape == layer.stddev.shape
        torch.testing.assert_close(layer.kl, sum_per_image(latent.kl))
    still = model.latents(X, temperature=0)
    for first, second in zip(still, model.latents(X, temperature=0), strict=True):
        assert torch.equal(first.sample, second.sample)


@torch.no_grad()
def test_samples_are_rows_of_their_own_and_missing_layers_come_from_their_priors(model):
    several = model.latents(X, samples=3, noise=noise())
    for layer in several:
        assert len(layer.sample) == 15 and layer.kl.shape == (15,)
    assert not torch.equal(several[-1].sample[:5], several[-1].sample[5:10])
    alone = model.latents(X, noise=noise().samples(1, 1))
    torch.testing.assert_close(several[-1].sample[5:10], alone[-1].sample, rtol=1e-4, atol=1e-5)
    top = model.latents(X, temperature=0)[:2]
    drawn = [model.decode(top, noise=noise(salt)).mean for salt in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    values = [None, top[1], None]
    assert model.decode(values, temperature=0).mean.shape == X.shape
    given = model.generate(5, noise=noise(1), given=[layer.sample for layer in top]).mean
    assert torch.equal(given, drawn[0])


@torch.no_grad()
def test_interpolation_ends_at_both_images_and_at_the_exchange(model):
    a, b = X[:2], X[2:4]
    ends = [model.decode(model.latents(x, temperature=0)).mean for x in (a, b)]
    way = model.interpolate(a, b, None, 3)
    assert way.shape == (3, *a.shape)
    torch.testing.assert_close(way[0], ends[0])
    torch.testing.assert_close(way[-1], ends[1])
    first, second = model.swap(a, b, [0, 1])
    torch.testing.assert_close(model.interpolate(a, b, [0, 1], 2)[-1], first)
    torch.testing.assert_close(model.swap(b, a, [1, 0])[0], second)
    assert not torch.equal(first, ends[0])
    every = model.swap(a, b)
    torch.testing.assert_close(every[0], ends[1])
    torch.testing.assert_close(every[1], ends[0])


@torch.no_grad()
def test_a_context_between_two_is_one_on_the_levels():
    settings = compose("digits_dct_ladder", *shrunk("digits_dct_ladder"))
    model = build_model(settings).eval()
    z = model.valid_latent(0, torch.rand(3, *model.latent_shapes[0]) * 2 - 1)
    assert torch.equal(z, quantise(z, model.decoder.bits))
    below = torch.rand(3, *model.latent_shapes[1])
    assert torch.equal(model.valid_latent(1, below), below)


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda m: m.latents(X, samples=0), "samples=0"),
        (lambda m: m.interpolate(X, X, [9], 3), "layers=.9. names no layers of this model"),
        (lambda m: m.swap(X, X, [-1]), "from 0 .the top. to"),
        (lambda m: m.swap(X, X, []), "names no layers"),
        (lambda m: m.swap(X, X, 0), "layers=0 names no layers"),
        (lambda m: m.swap(X, X, [0, "1"]), "names no layers"),
        (lambda m: m.interpolate(X, X, [0], 2.5), "steps=2.5"),
        (lambda m: m.interpolate(X, X, [0], 1), "steps=1"),
        (lambda m: m.swap(X, X[:2], [0]), "differ in shape"),
        (lambda m: m.decode([]), "has layers of no rows"),
        (lambda m: m.decode([None]), "has layers of no rows"),
        (lambda m: m.decode([torch.zeros(2, 9, 9, 9)]), "this layer's is .rows, "),
        (lambda m: m.decode([*m.latents(X), None]), "the model"),
    ],
)
def test_mistakes_get_one_sentence(act, complaint):
    settings = compose("digits_ladder", *shrunk("digits_ladder"))
    with pytest.raises(ValueError, match=complaint):
        act(build_model(settings).eval())
