"""Whether scales, context and denoiser fit the image and one another, before anything is built.

The model's own parts are asked; here is only which arguments each has, and where they were set.
"""

import re
from typing import Any

from model.ladder_vae import LadderVAE
from model.part import Part
from model.scales import layout
from utils.errors import ConfigError
from utils.settings.parts import arguments_of, part_class, target_of
from utils.settings.schema import Settings
from utils.settings.schema.model import Model

MOST_BLOCKS = 1000  # far more than anybody has trained; building more takes minutes


def check_geometry(settings: Settings) -> None:
    """Refuse what cannot be built.

    Raises:
        ConfigError: naming the sizes that do not fit.
    """
    model, image = settings.model, settings.dataset.image_size
    plain = settings.plain["model"]
    decoder, prior = plain["decoder"], plain["decoder"]["z_L_prior"]
    decoder_target = target_of(decoder, "model.decoder")
    prior_target = target_of(prior, "model.decoder.z_L_prior")
    _ask(LadderVAE, "model", image, {**plain, "decoder": decoder_target})
    _check_blocks(model)
    part = part_class(decoder, "model.decoder")
    _ask(part, "model.decoder", image, {**decoder, "z_L_prior": prior_target})
    size = model.ctx_size or _top_size(model, image)
    part = part_class(prior, "model.decoder.z_L_prior")
    _ask(part, "model.decoder.z_L_prior", size, prior)
    if model.decoder.z_L_prior.model:
        key = "model.decoder.z_L_prior.model"
        _ask(part_class(prior["model"], key), key, size, prior["model"])


def _ask(part: type[Part] | None, key: str, size: int, arguments: dict[str, Any]) -> None:
    """Whether the arguments fit, where the part can say; else building it will tell."""
    if part is None:
        return
    try:
        part.check_arguments(size, **arguments_of(arguments))
    except ValueError as error:
        said = str(error)
        raise ConfigError(said if said.startswith("model.") else f"{key}.{said}") from error
    except TypeError as error:
        missing = re.search(r"missing .*?'(\w+)'", str(error))
        if missing is None:
            raise
        raise ConfigError(
            f"{key}.{missing[1]} is missing: leave it where it was, or give it a value."
        ) from error


def _top_size(model: Model, image: int) -> int:
    """Height and width of the coarsest latent."""
    sizes = (model.latent_scales, model.latent_width, model.num_ch, model.scale_ch_mult)
    return layout(image, *sizes, model.start_scale_at_x)[-1].size


def _check_blocks(model: Model) -> None:
    per_latent = [part.num_blocks_per_scale or 1 for part in (model.encoder, model.decoder)]
    blocks = sum(model.latent_scales) * sum(per_latent)
    if blocks > MOST_BLOCKS:
        raise ConfigError(
            f"model.latent_scales={model.latent_scales} makes {blocks:,} residual blocks, with "
            f"num_blocks_per_scale of encoder and decoder: use {MOST_BLOCKS} or fewer."
        )
