"""Each part says in one sentence, beginning with the argument's name, what cannot be built."""

import pytest

from model import LadderVAE
from model.decoder import ContextDecoder, LadderDecoder
from model.diffusion import DiffusionPrior
from model.priors import GaussianPrior, NetworkPrior, StandardPrior
from model.unet import UNet, most_levels

UNET = {
    "model_channels": 32,
    "num_res_blocks": 3,
    "channel_mult": [1],
    "num_heads": 2,
    "dropout": 0.1,
}
LADDER = {
    "latent_scales": [4, 4],
    "latent_width": [1, 1],
    "num_ch": 16,
    "scale_ch_mult": 1.25,
    "block_ch_mult": 0.5,
    "start_scale_at_x": False,
    "weight_norm": True,
}
DDGM = {"T": 7, "beta_schedule": "linear", "t_sample": "uniform", "parametrization": "x"}


def complaint(part: type, size: int, arguments: dict) -> str:
    """What the part says."""
    with pytest.raises(ValueError) as error:
        part.check_arguments(size, **arguments)
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model_channels": 24},
            "model_channels=24 times 1 is no multiple of 16, which its group norms need: use a "
            "multiple of 16.",
        ),
        ({"num_heads": 5}, "num_heads=5 does not divide its 32 channels: use a divisor."),
        (
            {"channel_mult": [1, 1]},
            "channel_mult=[1, 1] halves the top latent 1 times, which its 7 elements a side don't "
            "allow: use 1 level(s) or fewer.",
        ),
    ],
)
def test_unet(changes, sentence):
    UNet.check_arguments(7, **UNET)
    assert complaint(UNet, 7, {**UNET, **changes}) == sentence


def test_levels_of_a_unet():
    assert [most_levels(size) for size in (1, 2, 7, 8, 12)] == [1, 2, 1, 4, 3]
    for size in (2, 8, 12):
        UNet.check_arguments(size, **{**UNET, "channel_mult": [1] * most_levels(size)})


def test_a_group_norm_has_more_than_one_value():
    """With one, PyTorch refuses a batch of one image, and makes any other nothing but its bias."""
    for size, mult in ((1, [1]), (2, [1, 1]), (4, [2, 2, 1])):
        few = {**UNET, "model_channels": 16, "channel_mult": mult}
        assert "model_channels=16 leaves each group norm a single value" in complaint(
            UNet, size, few
        )
        UNet.check_arguments(size, **{**few, "model_channels": 32})
        UNet.check_arguments(2 * size, **few)


def test_eps_needs_noise_that_can_be_undone():
    DiffusionPrior.check_arguments(7, **{**DDGM, "T": 3, "parametrization": "eps"})
    found = complaint(DiffusionPrior, 7, {**DDGM, "T": 2, "parametrization": "eps"})
    assert found == "parametrization=eps divides by zero where T=2 ends in pure noise: use x."


def test_a_contexts_prior_is_bounded():
    ContextDecoder.check_arguments(28, z_L_prior=DiffusionPrior, z_L_bits=2)
    for prior in (NetworkPrior, StandardPrior, GaussianPrior):
        found = complaint(ContextDecoder, 28, {"z_L_prior": prior, "z_L_bits": 2})
        assert found == (
            "z_L_prior of a context must be a diffusion model: use model/decoder/z_L_prior=ddgm."
        )
        LadderDecoder.check_arguments(28, z_L_prior=prior)


@pytest.mark.parametrize(
    ("decoder", "changes", "beginning"),
    [
        (LadderDecoder, {"num_ch": 1}, "num_ch=1 with scale_ch_mult=1.25 and block_ch_mult=0.5 "),
        (LadderDecoder, {"latent_width": [1, 0]}, "model.latent_width=[1, 0] has a 0 at a scale"),
        (LadderDecoder, {"latent_scales": [1]}, "model.latent_scales=[1] has 1 scales and"),
        (LadderDecoder, {"ctx_size": 7}, "ctx_size=7 needs model/decoder=context."),
        (ContextDecoder, {}, "ctx_size is missing, the context's side: use "),
        (ContextDecoder, {"ctx_size": 29}, "ctx_size=29 is over the image's 28 pixels: use 28 or"),
    ],
)
def test_the_whole(decoder, changes, beginning):
    LadderVAE.check_arguments(28, decoder=LadderDecoder, **LADDER)
    LadderVAE.check_arguments(28, decoder=ContextDecoder, ctx_size=28, **LADDER)
    assert complaint(LadderVAE, 28, {**LADDER, "decoder": decoder, **changes}).startswith(beginning)


def test_a_part_with_nothing_to_say_accepts_anything():
    for part in (NetworkPrior, StandardPrior, GaussianPrior, LadderDecoder):
        part.check_arguments(1, anything=2)


def test_the_fewest_parameters_are_fewer_than_there_are():
    for channels, mult, blocks in ((16, [1], 1), (32, [1, 2], 3)):
        sizes = {"model_channels": channels, "channel_mult": mult, "num_res_blocks": blocks}
        net = UNet(1, 2, num_heads=1, dropout=0.0, **sizes)
        count = sum(parameter.numel() for parameter in net.parameters())
        assert 0.1 * count < UNet.fewest_parameters(num_heads=1, **sizes) < count
