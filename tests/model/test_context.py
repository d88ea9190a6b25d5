"""The DCT against scipy, its scale, what carries nothing, and the downsampled context."""

import time

import pytest
import torch
from scipy.fft import dctn, idctn

from model.context import ContextPosterior, DCTContext, DownsampleContext, dct_matrices
from model.noise import Noise


def images(n=3, channels=2, size=12, seed=0) -> torch.Tensor:
    """Random uint8 images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator).to(torch.uint8)


@pytest.mark.parametrize(("size", "keep"), [(28, 7), (32, 6), (12, 12), (9, 1)])
def test_matrices_are_scipys_dct(size, keep):
    x = torch.rand(5, size, size, dtype=torch.float64)
    forward, inverse = dct_matrices(size, keep)
    y = forward @ x @ forward.T
    full = dctn(x.numpy(), axes=(1, 2), norm=None)
    torch.testing.assert_close(y, torch.from_numpy(full[:, :keep, :keep].copy()))
    full[:, keep:] = 0
    full[:, :, keep:] = 0
    back = torch.from_numpy(idctn(full, axes=(1, 2), norm=None))
    torch.testing.assert_close(inverse @ y @ inverse.T, back)
    if keep == size:
        torch.testing.assert_close(back, x)


def test_scale_is_the_largest_floor():
    data = images(50)
    context = DCTContext(2, 12, 4)
    context.fit(data, 255, chunk=7)
    y = dctn(data.numpy() / 255.0, axes=(2, 3), norm=None)[:, :, :4, :4]
    expected = torch.from_numpy(y).floor().abs().amax(0)
    assert torch.equal(context.scale, expected.float())


def test_round_trip_at_full_resolution():
    context = DCTContext(2, 12, 12)
    data = images()
    context.fit(data, 255)
    x = data.float() / 127.5 - 1
    v = context.encode(x)
    assert v.abs().max() <= 1
    inside = v.abs().amax((1, 2, 3)) < 1  # |floor(y)| can be below y: the largest may be clamped
    torch.testing.assert_close(context.render(v)[inside], x[inside], atol=1e-4, rtol=0)
    assert (context.render(v) - x).abs().max() < 0.1


def test_elements_without_scale_carry_nothing():
    """Constant images have only the lowest frequency: no NaN, no level to choose, no entropy."""
    data = torch.full((4, 1, 8, 8), 200, dtype=torch.uint8)
    context = DCTContext(1, 8, 3)
    context.fit(data, 255)
    assert context.scale.count_nonzero() == 1
    x = data.float() / 127.5 - 1
    u, q = ContextPosterior("delta", -10, 1, 3, 2)(
        context.encode(x), context.active, Noise.fresh(4)
    )
    assert u.isfinite().all() and context.render(u).isfinite().all()
    empty = context.active == 0
    assert torch.equal(q.entropy()[:, empty], torch.zeros(4, 8))
    assert (u[:, empty] == u[0, 0, 2, 2]).all()


def test_downsampling_pads_after_and_pools():
    x = torch.arange(25.0).view(1, 1, 5, 5) / 25
    context = DownsampleContext(1, 5, 3)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1), mode="replicate")
    expected = padded.view(3, 2, 3, 2).mean((1, 3))
    torch.testing.assert_close(context.encode(x)[0, 0], expected)
    assert context.render(context.encode(x)).shape == x.shape
    flat = torch.full((1, 1, 5, 5), 0.3)
    torch.testing.assert_close(context.render(context.encode(flat)), flat)


@pytest.mark.parametrize("kind", ["delta", "fixed", "train", "conditional"])
def test_posteriors(kind):
    torch.manual_seed(0)
    posterior = ContextPosterior(kind, -4.0, 2, 3, 2)
    v = torch.rand(2000, 2, 3, 3) * 2 - 1
    active = torch.ones(2, 3, 3)
    u, q = posterior(v, active, Noise.keyed(torch.arange(2000), 0))
    assert q.log_prob(u).isfinite().all()
    if kind == "delta":
        assert ((u * 4 + 1) % 2 == 0).all()  # odd multiples of a quarter
    else:
        assert (u - q.mean).std().item() == pytest.approx(q.stddev.mean().item(), rel=0.1)
    zero = [posterior(v, active, Noise.keyed(torch.arange(2000), s), 0.0)[0] for s in (1, 2)]
    assert torch.equal(*zero)


def test_scale_of_a_large_set_takes_under_a_second():
    data = images(60_000, 1, 28)
    context = DCTContext(1, 28, 7)
    began = time.perf_counter()
    context.fit(data, 255)
    assert time.perf_counter() - began < 5.0  # about 0.3 s; slack for a busy machine
