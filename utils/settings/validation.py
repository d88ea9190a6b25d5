"""Settings are checked here, once, before anything is built: each value, then what must fit.

`RULES` says what each key may hold. A key without a rule is an error, except below a `_target_`,
whose own signature decides.
"""

from collections.abc import Iterator

import yaml

from model.scales import layout
from utils.errors import ConfigError
from utils.settings.composition import unknown
from utils.settings.groups import DATASET
from utils.settings.identity import leaves
from utils.settings.rules import RULES, check
from utils.settings.trust import CONFIGS

TARGETS_OWN = {"train.scheduler", "dataset.test_arguments"}  # hold what a target takes
MOST_BLOCKS = 1000  # far more than anybody has trained; building more takes minutes


def validate(settings: dict) -> None:
    """Check every value, then what must hold between them.

    Raises:
        ConfigError: at the first that is wrong.
    """
    targets, present = set(), set()
    for key, value in leaves(settings):
        groups = {key[:end] for end, sign in enumerate(key) if sign == "."}
        present |= groups | {key}
        for single in groups & (RULES.keys() - TARGETS_OWN):
            raise ConfigError(check(single, {key.removeprefix(f"{single}."): value}))
        if any(key.startswith(target) for target in targets) and key not in RULES:
            continue
        if key.endswith("._target_"):
            targets.add(key.removesuffix("_target_"))
        if key not in RULES:
            raise unknown(key)
        problem = check(key, value)
        if problem:
            raise ConfigError(problem)
    partial = {f"{target}_partial_" for target in targets} & RULES.keys()
    for key in (*_required(settings), *sorted(partial)):
        if key not in present:
            raise ConfigError(f"{key} is missing: leave it where it was, or give it a value.")
    if settings["train"]["checkpoint_activations"] and settings["model"]["batch_norm"]:
        raise ConfigError(
            "train.checkpoint_activations=true with model.batch_norm=true would count every batch "
            "twice: use one of them."
        )
    try:
        _validate_model(settings["model"], settings["dataset"])
    except KeyError as error:
        raise ConfigError(
            f"{error.args[0]} is missing in model or dataset: leave it where it was, or give it a "
            "value."
        ) from error


def _required(settings: dict) -> Iterator[str]:
    """What must be there, whatever the choices: a command line can take keys away."""
    task = settings.get("task", {}).get("name", "train")
    groups = {"": "defaults", "train.": "train/defaults", "wandb.": "wandb/defaults"}
    groups |= {"model.": "model/base", "task.": f"task/{task}"}
    for prefix, file in groups.items():
        content = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text(encoding="utf-8"))
        own = {key: value for key, value in content.items() if key not in ("defaults", "hydra")}
        yield from (f"{prefix}{key}" for key, _ in leaves(own))
    yield from (f"dataset.{key}" for key in ("_target_", *DATASET))
    yield from (f"dataset.data_module.{key}" for key in ("batch_size", "test_batch_size"))
    for part in ("model.encoder", "model.decoder", "model.decoder.z_L_prior", "train.optimizer"):
        yield f"{part}._target_"


def _validate_model(model: dict, dataset: dict) -> None:
    """The geometry: scales, context and denoiser fit the image and one another."""
    size = dataset["image_size"]
    try:
        scales = layout(
            size,
            model["latent_scales"],
            model["latent_width"],
            model["num_ch"],
            model["scale_ch_mult"],
            model["start_scale_at_x"],
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    blocks = sum(model["latent_scales"]) * sum(
        model[part].get("num_blocks_per_scale", 1) for part in ("encoder", "decoder")
    )
    if blocks > MOST_BLOCKS:
        raise ConfigError(
            f"model.latent_scales={model['latent_scales']} makes {blocks:,} residual blocks, with "
            f"num_blocks_per_scale of encoder and decoder: use {MOST_BLOCKS} or fewer."
        )
    smallest = min(int(scale.channels * model["block_ch_mult"]) for scale in scales)
    if smallest < 1:
        raise ConfigError(
            f"model.num_ch={model['num_ch']} with model.scale_ch_mult={model['scale_ch_mult']} and "
            f"model.block_ch_mult={model['block_ch_mult']} leaves a block no channels: raise one."
        )
    if any(scale.width < 1 for scale in scales):
        raise ConfigError(
            f"model.latent_width={model['latent_width']} has a 0 at a scale with latents "
            f"(model.latent_scales={model['latent_scales']}): give it a width."
        )
    prior_key, top = "model.decoder.z_L_prior", scales[-1].size
    if "ctx_size" in model:
        top = model["ctx_size"]
        if top > size:
            raise ConfigError(
                f"model.ctx_size={top} is over the image's {size} pixels: use {size} or less."
            )
    elif "ctx_type" in model["decoder"]:
        raise ConfigError(
            "model/decoder=context needs model.ctx_size, the context's side: use "
            "model=context_ladder, which has it."
        )
    if "ctx_size" in model and "ctx_type" not in model["decoder"]:
        raise ConfigError("model=context_ladder needs model/decoder=context.")
    prior = model["decoder"].get("z_L_prior", {})
    if "ctx_size" in model and "T" not in prior:
        raise ConfigError(
            f"{prior_key} of a context must be a diffusion model: use model/decoder/z_L_prior=ddgm."
        )
    if prior.get("model", {}).get("_target_", "").endswith(".UNet"):
        _validate_unet(prior["model"], f"{prior_key}.model", top)
    if prior.get("parametrization") == "eps" and prior["T"] == 2:
        raise ConfigError(
            f"{prior_key}.parametrization=eps divides by zero where T=2 ends in pure noise: use x."
        )


def _validate_unet(unet: dict, key: str, size: int) -> None:
    """GroupNorm's 16 groups, the heads and the halvings divide what they must."""
    mult = unet["channel_mult"]
    for m in mult:
        channels = unet["model_channels"] * m
        if channels % 16:
            raise ConfigError(
                f"{key}.model_channels={unet['model_channels']} times {m} is no multiple of 16, "
                "which its group norms need: use a multiple of 16."
            )
    if channels % unet["num_heads"]:
        raise ConfigError(
            f"{key}.num_heads={unet['num_heads']} does not divide its {channels} channels: use a "
            "divisor."
        )
    halvings = len(mult) - 1
    if size % 2**halvings:
        raise ConfigError(
            f"{key}.channel_mult={mult} halves the top latent {halvings} times, which its {size} "
            f"elements a side don't allow: use {_fewer(size)} level(s) or fewer."
        )


def _fewer(size: int) -> int:
    """The most U-Net levels that a side of `size` allows."""
    levels = 1
    while size % 2**levels == 0:
        levels += 1
    return levels
