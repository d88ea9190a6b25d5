"""From a composed config to checked settings, a run's folder, and the objects they describe.

Every key is checked here, once, before anything is built: `RULES` says what each may hold. A key
without a rule is an error, except below a `_target_`, whose own signature decides.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.optim import Optimizer

from datasets.splits import ImageSplits
from model.ladder_vae import LadderVAE
from model.objective import Objective
from model.scales import layout
from utils.rules import RULES, check

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
OBJECTIVE = ("beta_start", "beta_end", "warmup", "free_bits_thr")
EVALUATION = ("is_k", "is_k_prior")
DATASET = (  # the keys that are not the source's own
    "name",
    "image_size",
    "channels",
    "levels",
    "standardisation",
    "horizontal_flip",
    "data_module",
)


class ConfigError(ValueError):
    """A setting is wrong; the message is one sentence with the key, the value and the remedy."""


def compose(overrides: list[str]) -> DictConfig:
    """The config that the command line would give.

    Raises:
        ConfigError: if Hydra refuses an override.
    """
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        try:
            return hydra_compose("defaults", overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error) from error


def explain(error: Exception) -> ConfigError:
    """Hydra's word for a wrong override, as one sentence with a remedy."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    wrong = re.match(r"Could not (?:override|append) '(.+?)'", text)
    if wrong:
        close = difflib.get_close_matches(wrong[1], RULES, 1, 0.5)
        remedy = f"did you mean {close[0]}?" if close else "remove it."
        return ConfigError(f"{wrong[1]} is not a setting: {remedy}")
    if "Available options in" in str(error):
        start = next(i for i, line in enumerate(lines) if line.startswith("Available")) + 1
        options = list(takewhile(lambda line: not line.endswith(":"), lines[start:]))
        missing = re.search(r"Could not find '(.+?)'", str(error))
        group, _, choice = (missing[1] if missing else "").rpartition("/")
        return ConfigError(f"{group}={choice} is not a choice: use one of {', '.join(options)}.")
    return ConfigError(f"{' '.join(lines)}: correct the command line (README, Settings).")


def override_settings(settings: dict, overrides: Sequence[str]) -> dict:
    """A trained model's settings with the command line's overrides laid over them.

    A whole group may be replaced only for `dataset`; what belongs to the task at hand is left out.

    Raises:
        ConfigError: if an override would make it another model.
    """
    merged = OmegaConf.create(settings)
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise explain(error) from error
    for override in sorted(parsed, key=lambda o: "." in o.key_or_group):
        key, value = override.key_or_group, override.value()
        if key.split(".")[0] in ("task", "wandb", "checkpoint", "runs_dir", "hydra"):
            continue
        if key == "dataset":
            merged.dataset = compose([override.input_line]).dataset
        elif key in ("experiment", "name"):
            if value != settings["name"]:
                raise ConfigError(
                    f"{key}={value} contradicts the checkpoint, which is of {settings['name']} "
                    "and has its settings: leave it out."
                )
        elif "." in key and "/" not in key:
            OmegaConf.update(merged, key, value, force_add=True)
        else:
            raise ConfigError(f"{override.input_line} would make it another model: leave it out.")
    return resolve(merged)


def resolve(config: DictConfig | dict) -> dict:
    """The config as plain containers, interpolations resolved.

    Raises:
        ConfigError: if a value is missing or an interpolation leads nowhere.
    """
    try:
        container = OmegaConf.to_container(
            OmegaConf.create(config), resolve=True, throw_on_missing=True
        )
    except OmegaConfBaseException as error:
        key = error.full_key or "A setting"
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{key} has no value ({reason}): choose an experiment=… or set {key}=…."
        ) from error
    return container


def validate(settings: dict) -> None:
    """Check every value, then what must hold between them.

    Raises:
        ConfigError: at the first that is wrong.
    """
    targets = set()
    for key, value in _leaves(settings):
        if any(key.startswith(target) for target in targets) and key not in RULES:
            continue
        if key.endswith("._target_"):
            targets.add(key.removesuffix("_target_"))
        if key not in RULES:
            close = difflib.get_close_matches(key, RULES, 1, 0.5)
            hint = f": did you mean {close[0]}?" if close else ": remove it."
            raise ConfigError(f"{key}={value} is not a setting{hint}")
        problem = check(key, value)
        if problem:
            raise ConfigError(problem)
    _validate_model(settings["model"], settings["dataset"])


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping, `_target_` before its neighbours."""
    for key in sorted(node, key=lambda k: (k != "_target_", str(k))):
        value, name = node[key], f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


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
        raise ConfigError("model/decoder=context needs a context: use model=context_ladder.")
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


def digest(settings: dict) -> str:
    """Eight hex digits of everything that determines the result.

    Device, paths, logging, tasks and the number of processes are left out (RULES marks them).
    """
    kept = {
        key: value
        for key, value in _leaves(settings)
        if not (key in RULES and RULES[key].free) and not key.startswith(("wandb.", "task."))
    }
    text = json.dumps(kept, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(settings: dict) -> str:
    """The name of a run's folder: a function of the settings alone."""
    return f"{settings['name']}-seed{settings['train']['seed']}-{digest(settings)}"


def without_secrets(settings: dict) -> dict:
    """The settings as they may be written down."""
    return {**settings, "wandb": {**settings["wandb"], "api_key": None}}


def build(node: dict, key: str, **arguments: Any) -> Any:
    """Instantiate the `_target_` of settings[key] (with _partial_: a function that finishes it).

    Raises:
        ConfigError: if it cannot be found or refuses its settings.
    """
    if not node:  # a choice of none, as in train/scheduler=none
        return None
    target = f"{key}._target_={node.get('_target_')}"
    made = _mended(target, instantiate, {**node, "_convert_": "all"}, **arguments)
    return partial(_mended, target, made) if node.get("_partial_") else made


def _mended(target: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(…), with what a wrong target or argument raises as a ConfigError."""
    try:
        return function(*args, **kwargs)
    except (TypeError, InstantiationException) as error:
        cause = error.__cause__ or error
        if isinstance(cause, ValueError):
            raise cause from None
        reason = " ".join(str(cause).split())
        raise ConfigError(f"{target} failed ({reason}): correct it or its settings.") from error


def build_objective(settings: dict) -> Objective:
    """The training loss."""
    return Objective(**{key: settings["model"][key] for key in OBJECTIVE})


def build_model(settings: dict) -> LadderVAE:
    """The untrained model."""
    model, dataset = settings["model"], settings["dataset"]
    parts = {k: v for k, v in model.items() if k not in (*OBJECTIVE, *EVALUATION)}
    for part in ("encoder", "decoder"):
        parts[part] = build(model[part], f"model.{part}")
    size = dataset["image_size"]
    return LadderVAE(
        image_shape=(dataset["channels"], size, size),
        standardisation=dataset["standardisation"],
        levels=dataset["levels"],
        **parts,
    )


def build_optimizer(settings: dict, model: LadderVAE) -> tuple[Optimizer, Any]:
    """The optimiser of all of the model's parameters, and its schedule (None: constant)."""
    train = settings["train"]
    optimizer = build(train["optimizer"], "train.optimizer")(model.parameters())
    make_scheduler = build(train["scheduler"], "train.scheduler")
    return optimizer, make_scheduler(optimizer) if make_scheduler else None


def load_images(settings: dict) -> ImageSplits:
    """Read (and, where missing, fetch) the data set.

    Raises:
        ConfigError: if the images have another shape than dataset.channels and image_size say.
    """
    dataset = settings["dataset"]
    source = {key: value for key, value in dataset.items() if key not in DATASET}
    splits = build(source, "dataset")
    expected = (dataset["channels"], dataset["image_size"], dataset["image_size"])
    if splits.image_shape != expected:
        channels, height, _ = splits.image_shape
        raise ConfigError(
            f"dataset.channels={expected[0]} and dataset.image_size={expected[1]} don't fit "
            f"the images of {dataset['name']}, {splits.image_shape}: use {channels} and {height}."
        )
    if splits.max_value != dataset["levels"] - 1:
        raise ConfigError(
            f"dataset.levels={dataset['levels']} doesn't fit the images of {dataset['name']}, "
            f"whose largest level is {splits.max_value}: use {splits.max_value + 1}."
        )
    return splits
