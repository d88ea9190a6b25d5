"""Settings composed by Hydra from configs/ and the command line; resolved to plain containers."""

import difflib
import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.errors import ConfigError
from utils.settings.rules import RULES
from utils.settings.trust import CONFIGS, recorded

OmegaConf.register_new_resolver("stem", lambda path: Path(path).absolute().stem)


def compose(overrides: list[str]) -> DictConfig:
    """The config that the command line would give.

    Raises:
        ConfigError: if Hydra refuses an override.
    """
    hydra = GlobalHydra.instance()
    running, hydra.hydra = hydra.hydra, None  # of the command itself, where we are within one
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra_compose("defaults", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
    finally:
        hydra.hydra = running


def explain(error: Exception) -> ConfigError:
    """Hydra's word for a wrong override, as one sentence with a remedy."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    wrong = re.match(r"Could not (?:override|append) '(.+?)'", text)
    if wrong:
        return unknown(wrong[1])
    listed = [i for i, line in enumerate(lines) if line.startswith("Available options in")]
    if listed and listed[0] > 0:  # else it is what was typed
        options = list(takewhile(lambda line: not line.endswith(":"), lines[listed[0] + 1 :]))
        missing = re.search(r"Could not find '(.+?)'", str(error))
        group, _, choice = (missing[1] if missing else "").rpartition("/")
        return ConfigError(f"{group}={choice} is not a choice: use one of {', '.join(options)}.")
    return ConfigError(f"{' '.join(lines)}: correct the command line (README, Settings).")


def unknown(key: str) -> ConfigError:
    """The sentence about a key that is not there."""
    if key in RULES:
        group = key.rpartition(".")[0].replace(".", "/")
        return ConfigError(f"{key} is not a setting here: the {group} chosen doesn't have it.")
    close = difflib.get_close_matches(key, RULES, 1, 0.5)
    remedy = f"did you mean {close[0]}?" if close else "remove it."
    return ConfigError(f"{key} is not a setting: {remedy}")


def experiments() -> list[str]:
    """The names of those in configs/experiment."""
    return sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def override_settings(
    settings: object, overrides: Sequence[str], named: str = "The checkpoint"
) -> dict:
    """A trained model's settings, out of a file, with the command line's overrides laid over them.

    A whole group may be replaced only for `dataset`; what belongs to the task at hand is left out.
    Before anything of them is built, `check_targets` must have seen them.

    Raises:
        ConfigError: if an override would make it another model, or the settings are more than data.
    """
    settings = recorded(settings, named)
    merged = OmegaConf.create(_complete(settings))
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise explain(error) from error
    for override in sorted(parsed, key=lambda o: "." in o.key_or_group):
        key, value = override.key_or_group, override.value()
        if key.split(".")[0] in ("task", "wandb", "checkpoint", "run", "runs", "runs_dir", "hydra"):
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
    merged = resolve(merged)
    _same_shape(settings["dataset"], merged["dataset"])
    return merged


def _complete(settings: dict) -> dict:
    """Settings of an earlier version, with the defaults of what came later; the model's stay."""
    found = dict(settings)
    for group in ("train", "wandb"):
        defaults = OmegaConf.to_container(OmegaConf.load(CONFIGS / group / "defaults.yaml"))
        defaults.pop("defaults", None)
        found[group] = {**defaults, **settings[group]}
    return found


def _same_shape(trained: dict, wanted: dict) -> None:
    """A model is used on images of the shape that it was trained on.

    Raises:
        ConfigError: on others.
    """
    shapes = [f"{d['channels']}×{d['image_size']}×{d['image_size']}" for d in (trained, wanted)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"dataset={wanted['name']} has images of {shapes[1]}, the checkpoint is of a model of "
            f"{shapes[0]} ({trained['name']}): name a data set of that shape."
        )


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


def take_secrets(arguments: list[str]) -> None:
    """Move wandb.api_key=… from the command line, in place, to the environment.

    Hydra writes a sweep's command line to a file, and W&B's client sends it.
    """
    for argument in list(arguments):
        key, _, value = argument.partition("=")
        if key.lstrip("+") == "wandb.api_key" and value.strip("'\"") not in ("", "null"):
            os.environ["WANDB_API_KEY"] = value.strip("'\"")
            arguments.remove(argument)


def quote_texts(arguments: list[str]) -> None:
    """Quote, in place, a number where a text is meant: a run's id may be 45143230 or 12e45678."""
    for index, argument in enumerate(arguments):
        key, _, value = argument.partition("=")
        try:
            number, rule = float(value), RULES[key.lstrip("+")]
        except (ValueError, KeyError):
            continue
        if rule.accepts(value) and not rule.accepts(number):
            arguments[index] = f"{key}='{value}'"
