"""Whether scales, context and denoiser fit the image and one another, before anything is built."""

from model.scales import layout
from utils.errors import ConfigError
from utils.settings.schema import Denoiser, Model, Settings

MOST_BLOCKS = 1000  # far more than anybody has trained; building more takes minutes
PRIOR = "model.decoder.z_L_prior"


def check_geometry(settings: Settings) -> None:
    """Refuse what cannot be built.

    Raises:
        ConfigError: naming the sizes that do not fit.
    """
    model, size = settings.model, settings.dataset.image_size
    try:
        scales = layout(
            size,
            model.latent_scales,
            model.latent_width,
            model.num_ch,
            model.scale_ch_mult,
            model.start_scale_at_x,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check_blocks(model)
    if min(int(scale.channels * model.block_ch_mult) for scale in scales) < 1:
        raise ConfigError(
            f"model.num_ch={model.num_ch} with model.scale_ch_mult={model.scale_ch_mult} and "
            f"model.block_ch_mult={model.block_ch_mult} leaves a block no channels: raise one."
        )
    if any(scale.width < 1 for scale in scales):
        raise ConfigError(
            f"model.latent_width={model.latent_width} has a 0 at a scale with latents "
            f"(model.latent_scales={model.latent_scales}): give it a width."
        )
    _check_context(model, size)
    _check_prior(model, model.ctx_size or scales[-1].size)


def _check_blocks(model: Model) -> None:
    per_latent = [part.num_blocks_per_scale or 1 for part in (model.encoder, model.decoder)]
    blocks = sum(model.latent_scales) * sum(per_latent)
    if blocks > MOST_BLOCKS:
        raise ConfigError(
            f"model.latent_scales={model.latent_scales} makes {blocks:,} residual blocks, with "
            f"num_blocks_per_scale of encoder and decoder: use {MOST_BLOCKS} or fewer."
        )


def _check_context(model: Model, size: int) -> None:
    has_context = model.ctx_size is not None
    if has_context and model.ctx_size > size:
        raise ConfigError(
            f"model.ctx_size={model.ctx_size} is over the image's {size} pixels: use {size} or "
            "less."
        )
    if not has_context and model.decoder.ctx_type:
        raise ConfigError(
            "model/decoder=context needs model.ctx_size, the context's side: use "
            "model=context_ladder, which has it."
        )
    if has_context and not model.decoder.ctx_type:
        raise ConfigError("model=context_ladder needs model/decoder=context.")
    if has_context and model.decoder.z_L_prior.T is None:
        raise ConfigError(
            f"{PRIOR} of a context must be a diffusion model: use model/decoder/z_L_prior=ddgm."
        )


def _check_prior(model: Model, size: int) -> None:
    """Of the context or the top latent, whose side is `size`."""
    prior = model.decoder.z_L_prior
    if prior.model and prior.model.target.endswith(".UNet"):
        _check_unet(prior.model, f"{PRIOR}.model", size)
    if prior.parametrization == "eps" and prior.T == 2:
        raise ConfigError(
            f"{PRIOR}.parametrization=eps divides by zero where T=2 ends in pure noise: use x."
        )


def _check_unet(unet: Denoiser, key: str, size: int) -> None:
    """GroupNorm's 16 groups, the heads and the halvings divide what they must."""
    for mult in unet.channel_mult:
        channels = unet.model_channels * mult
        if channels % 16:
            raise ConfigError(
                f"{key}.model_channels={unet.model_channels} times {mult} is no multiple of 16, "
                "which its group norms need: use a multiple of 16."
            )
    if channels % unet.num_heads:
        raise ConfigError(
            f"{key}.num_heads={unet.num_heads} does not divide its {channels} channels: use a "
            "divisor."
        )
    halvings = len(unet.channel_mult) - 1
    if size % 2**halvings:
        raise ConfigError(
            f"{key}.channel_mult={unet.channel_mult} halves the top latent {halvings} times, which "
            f"its {size} elements a side don't allow: use {_most_levels(size)} level(s) or fewer."
        )


def _most_levels(size: int) -> int:
    """The most U-Net levels that a side of `size` allows."""
    levels = 1
    while size % 2**levels == 0:
        levels += 1
    return levels
