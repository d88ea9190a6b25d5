"""What a user may get wrong in Python is told in a sentence, not computed."""

import pytest
import torch

from tests.conftest import compose, shrunk
from utils.settings.build import build_model

X = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
SHAPES = r"x has shape .*\(B, 1, 8, 8\)"


@pytest.fixture(scope="module", params=["digits_ladder", "digits_dct_ladder"])
def model(request):
    built = build_model(compose(request.param, *shrunk(request.param))).eval()
    built.fit_context(torch.randint(0, 17, (20, 1, 8, 8), dtype=torch.uint8), 16)
    return built


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (X[:, 0], SHAPES),
        (X.expand(2, 3, 8, 8), SHAPES),
        (X[..., :7], SHAPES),
        ((X * 127).to(torch.uint8), "x is torch.uint8: bring 0"),
        (127.5 * (X + 1), "values from 0 to 255: bring images to"),
        (X.where(X < 0.9, torch.nan), "values from nan"),
        (X - 0.1, "values from -1.1"),
    ],
)
def test_images_that_are_none(model, x, told):
    px = model(X).px
    uses = (model, px.log_prob, model.latents, lambda x: model.reconstruct(x, 1))
    for use in (*uses, lambda x: model.log_likelihood(x, 2)):
        with pytest.raises(ValueError, match=told):
            use(x)


def test_images_that_rounding_brings_over_one_are_fine(model):
    assert model(X * 1.0001).px.log_prob(X * 1.0001).isfinite().all()


@pytest.mark.parametrize("n", [0, -1])
def test_no_draws(model, n):
    with pytest.raises(ValueError, match=f"n={n} draws nothing: use 1 or more"):
        model.sample(n)


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_temperatures(model, temperature):
    uses = (lambda t: model.sample(1, t), lambda t: model(X, t), lambda t: model.generate(1, t))
    for use in uses:
        with pytest.raises(ValueError, match=r"temperature=.* use 0 or more"):
            use(temperature)


def test_layers_that_are_not_there(model):
    for keep in (-1, model.num_latents + 1):
        with pytest.raises(ValueError, match=f"keep={keep} is not within the model's"):
            model.reconstruct(X, keep)
    assert model.reconstruct(X, model.num_latents).shape == X.shape


def test_training_does_not_look_at_values(model):
    """For that a GPU would have to be waited for; shapes are known without."""
    model.train()
    try:
        assert model(3 * X).reconstruction.shape == (2,)
        with pytest.raises(ValueError, match="x has shape"):
            model(X[0])
    finally:
        model.eval()
