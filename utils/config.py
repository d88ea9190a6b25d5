"""Settings: composed by Hydra, resolved to plain containers, overridden, and named by a digest."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.rules import RULES

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DATASET = (  # the keys that every data set has, beside its source's own
    "name",
    "image_size",
    "channels",
    "levels",
    "standardisation",
    "horizontal_flip",
    "data_module",
)
INTERPOLATION = "${"
STORED = ("validation_share", "test_share", "memory_limit", "cache")  # of images read one by one
NOT_THE_SOURCE = (*DATASET, *STORED, "likelihood", "test_arguments")


OmegaConf.register_new_resolver("stem", lambda path: Path(path).absolute().stem)


class ConfigError(ValueError):
    """A setting is wrong; the message is one sentence with the key, the value and the remedy."""


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


def recorded(content: object, named: str) -> dict:
    """Settings out of a file (`named` in messages), as data: what could be more is refused.

    Raises:
        ConfigError: where they hold other things than mappings with texts as keys, lists, texts,
            numbers, booleans and null; or an interpolation, which would read this process's
            environment or other settings.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{named} holds no settings: get a good copy.")
    try:
        return _plain(content, "", named)
    except RecursionError:
        raise ConfigError(f"{named} nests its settings without end: get a good copy.") from None


def _plain(value: object, key: str, named: str) -> Any:
    if isinstance(value, dict):
        found = {}
        for name, inner in value.items():
            inside = f"{key}.{name}".lstrip(".")
            _plain(name, f"key {inside!r}", named)
            if type(name) is not str:
                raise ConfigError(f"{named} has {name!r} for a key, no text: get a good copy.")
            found[name] = _plain(inner, inside, named)
        return found
    if isinstance(value, list):
        return [_plain(item, f"{key}.{index}", named) for index, item in enumerate(value)]
    if type(value) is str and INTERPOLATION in value:
        raise ConfigError(
            f"{named} is not to be trusted: its {key} holds an interpolation ({value[:60]!r}), "
            "which was not followed; get a good copy."
        )
    if value is not None and type(value) not in (str, bool, int, float):
        raise ConfigError(
            f"{named} is not to be trusted: its {key} is a {type(value).__name__}, which no "
            "setting is; get a good copy."
        )
    return value


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


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a mapping, `_target_` before its neighbours."""
    for key in sorted(node, key=lambda k: (k != "_target_", str(k))):
        value, name = node[key], f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def targets(node: Any) -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every `_target_` in settings, however deep: what building calls."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if key == "_target_":
            yield key, str(value)
        elif isinstance(value, (dict, list)):
            yield from ((f"{key}.{inner}", target) for inner, target in targets(value))


def check_targets(settings: dict, overrides: Sequence[str], named: str) -> None:
    """Settings that came in a file call nothing but what is named here.

    Raises:
        ConfigError: where they name what is in no file of configs/ and in no override. What lies
            beside the file does not count: it came the same way.
    """
    given = {o.partition("=")[2] for o in overrides if o.partition("=")[0].endswith("_target_")}
    here = _targets_in_configs() | given
    for key, target in targets(settings):
        if target not in here:
            raise ConfigError(
                f"{named} names code outside this project, {key}={target}, which was not run: add "
                f"{key}={target} to the command if you trust it."
            )


@cache
def _targets_in_configs() -> frozenset[str]:
    contents = (yaml.safe_load(p.read_text(encoding="utf-8")) for p in CONFIGS.rglob("*.yaml"))
    return frozenset(target for content in contents for _, target in targets(content or {}))


def determining(settings: dict) -> dict:
    """Dotted key -> value of everything that determines the result.

    Device, paths, logging, tasks and the number of processes are left out (RULES marks them), and
    what is null: a setting that a later version adds does not rename the runs before it.
    """
    return {
        key: value
        for key, value in leaves(settings)
        if value is not None
        and not (key in RULES and RULES[key].free)
        and not key.startswith(("wandb.", "task."))
    }


def digest(settings: dict) -> str:
    """Eight hex digits of what determines the result."""
    text = json.dumps(determining(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(settings: dict) -> str:
    """The name of a run's folder: a function of the settings alone."""
    return f"{settings['name']}-seed{settings['train']['seed']}-{digest(settings)}"


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


def without_secrets(settings: dict) -> dict:
    """The settings as they may be written down."""
    return {**settings, "wandb": {**settings["wandb"], "api_key": None}}
