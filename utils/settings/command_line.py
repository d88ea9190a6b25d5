"""A command: what was typed, and the config that Hydra composed of it."""

import os
from dataclasses import dataclass
from functools import cached_property

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from utils.errors import ConfigError
from utils.settings.check import check_task, check_wandb
from utils.settings.composition import composed_settings, resolve
from utils.settings.identity import of_all_processes
from utils.settings.schema import KEYS, Settings
from utils.settings.schema.task import TASKS, Task
from utils.settings.schema.wandb import Wandb
from utils.settings.trust import targets
from utils.version import source_digest


@dataclass(frozen=True)
class Command:
    """One job: the composed config, which may lack an experiment, and the overrides behind it."""

    composed: DictConfig
    overrides: tuple[str, ...]

    @classmethod
    def running(cls, composed: DictConfig) -> "Command":
        """The one that Hydra is running.

        Raises:
            ConfigError: if there is no such task.
        """
        command = cls(composed, tuple(HydraConfig.get().overrides.task))
        name = OmegaConf.select(composed, "task.name")
        if name not in TASKS:
            raise ConfigError(KEYS["task.name"].complain("task.name", name))
        return command

    @cached_property
    def settings(self) -> Settings:
        """All of them, checked: for what needs an experiment.

        Raises:
            ConfigError: at the first that is missing or wrong.
        """
        return composed_settings(self.composed)

    @cached_property
    def trusted(self) -> frozenset[str]:
        """The targets that the command names, or the config files that it chooses."""
        plain = OmegaConf.to_container(self.composed, resolve=False)
        return frozenset(target for _, target in targets(plain))

    @cached_property
    def task(self) -> Task:
        """The settings of the task at hand alone, checked.

        Raises:
            ConfigError: if one of them is wrong.
        """
        return check_task(resolve(self.composed.task), self.composed.estimators)

    @property
    def shared(self) -> dict[str, object]:
        """By name, what must be the same in all processes: settings as composed, and the code."""
        plain = OmegaConf.to_container(self.composed, resolve=False)
        code = {"the digest of the code": source_digest(), "PyTorch": torch.__version__}
        return {**code, **of_all_processes(plain)}

    @property
    def replaced(self) -> dict[str, object]:
        """Of a trained model's settings, the groups that every command brings itself."""
        names = ("task", "ood", "estimators", "metrics", "trackers", "runs_dir")
        return {name: resolve_value(self.composed[name]) for name in names}

    def wandb_setup(self) -> dict:
        """wandb.setup: where at W&B to look for a run."""
        return resolve(self.composed.wandb)["setup"]

    def wandb_over(self, recorded: dict) -> dict:
        """A run's wandb group, with what this command says of it."""
        group = OmegaConf.create({"wandb": recorded})
        for override in self.overrides:
            key = override.partition("=")[0]
            if key.startswith("wandb."):
                OmegaConf.update(group, key, OmegaConf.select(self.composed, key))
        return resolve(group)["wandb"]

    def wandb(self) -> Wandb:
        """The wandb group of the command itself.

        Raises:
            ConfigError: if a key of it is wrong.
        """
        return check_wandb(resolve(self.composed.wandb))

    def value(self, key: str) -> object:
        """One setting, checked by itself.

        Raises:
            ConfigError: if it is wrong.
        """
        found = resolve_value(OmegaConf.select(self.composed, key))
        if not KEYS[key].accepts(found):
            raise ConfigError(KEYS[key].complain(key, found))
        return found


def resolve_value(value: object) -> object:
    """A value of a composed config: a group or a list as plain containers."""
    return resolve({"value": value})["value"] if OmegaConf.is_config(value) else value


class KeyOutOfSweeps(Callback):
    """Takes W&B's key out of a sweep's settings, which Hydra writes to multirun.yaml."""

    def on_multirun_start(self, config: DictConfig, **others: object) -> None:
        """The key, as a file in configs/ may have it, goes to the environment."""
        key = OmegaConf.select(config, "wandb.api_key")
        if key:
            os.environ["WANDB_API_KEY"] = key
            with flag_override(config, "readonly", False):
                config.wandb.api_key = None


def take_secrets(arguments: list[str]) -> None:
    """Move wandb.api_key=… from the command line, in place, to the environment.

    Hydra writes a sweep's command line to a file, and W&B's client sends it.

    Raises:
        ConfigError: where the key is given in another form.
    """
    for argument in list(arguments):
        key, _, value = argument.partition("=")
        if key.lstrip("+") == "wandb" and "{" in value and "api_key" in value:
            raise ConfigError(
                "wandb={api_key: …} would be written to files: give the key as wandb.api_key=…, in "
                "WANDB_API_KEY or by `wandb login`."
            )
        if key.lstrip("+") == "wandb.api_key" and value.strip("'\"") not in ("", "null"):
            os.environ["WANDB_API_KEY"] = value.strip("'\"")
            arguments.remove(argument)
