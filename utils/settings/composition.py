"""Settings composed by Hydra from configs/ and the command line, resolved to plain containers."""

import re
from itertools import takewhile
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.errors import ConfigError
from utils.settings.check import check, check_estimators, unknown_key
from utils.settings.schema import Settings
from utils.settings.trust import CONFIGS

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


def composed_settings(composed: DictConfig) -> Settings:
    """A composed config, resolved and checked.

    Raises:
        ConfigError: at the first value that is missing or wrong.
    """
    settings = check(resolve(composed))
    check_estimators(settings.task, settings.estimators)
    return settings


def resolve(config: DictConfig | dict) -> dict:
    """The config as plain containers, interpolations resolved.

    Raises:
        ConfigError: if a value is missing or an interpolation leads nowhere.
    """
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "A setting"
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{key} has no value ({reason}): choose an experiment=… or set {key}=…."
        ) from error


def explain(error: Exception) -> ConfigError:
    """Hydra's words about a wrong override, as one sentence with a remedy."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    wrong = re.match(r"Could not (?:override|append) '(.+?)'", text)
    if wrong:
        return unknown_key(wrong[1])
    listed = [i for i, line in enumerate(lines) if line.startswith("Available options in")]
    if listed and listed[0] > 0:  # else it is what was typed
        options = list(takewhile(lambda line: not line.endswith(":"), lines[listed[0] + 1 :]))
        missing = re.search(r"Could not find '(.+?)'", str(error))
        group, _, choice = (missing[1] if missing else "").rpartition("/")
        return ConfigError(f"{group}={choice} is not a choice: use one of {', '.join(options)}.")
    return ConfigError(f"{' '.join(lines)}: correct the command line (docs/settings.md).")


def experiments() -> list[str]:
    """The names of those in configs/experiment."""
    return sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
