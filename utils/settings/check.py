"""From plain containers to checked `Settings`; a mistake is told in one sentence."""

import difflib
from collections.abc import Collection, Sequence
from functools import cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from model.estimators import ESTIMATORS
from utils.errors import ConfigError
from utils.settings.build import beta_schedule
from utils.settings.geometry import check_geometry
from utils.settings.schema import KEYS, Settings
from utils.settings.schema.task import TASKS, Task
from utils.settings.schema.wandb import Wandb


def check(plain: dict, to_build: bool = True) -> Settings:
    """The settings in these containers, of which each value is valid and all fit one another.

    to_build: whether the model's parts are asked about their sizes, for which the code that the
    settings name is imported; not where it is not to be trusted.

    Raises:
        ConfigError: at the first that is wrong: the key, the value, and what to use instead.
    """
    try:
        settings = Settings.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(_sentence(error, plain)) from None
    settings._plain.update(plain)
    _check_combinations(settings)
    if to_build:
        check_geometry(settings)
    return settings


def check_task(plain: dict, own_estimators: Collection[str] = ()) -> Task:
    """The settings of a task alone.

    Raises:
        ConfigError: at the first that is wrong, or names an estimator that is not there.
    """
    try:
        task = _task_adapter().validate_python(plain)
    except ValidationError as error:
        raise ConfigError(_sentence(error, {"task": plain}, ("task",))) from None
    check_estimators(task, own_estimators)
    return task


def check_wandb(plain: dict) -> Wandb:
    """The settings of W&B alone.

    Raises:
        ConfigError: at the first that is wrong.
    """
    try:
        return Wandb.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(_sentence(error, {"wandb": plain}, ("wandb",))) from None


@cache
def _task_adapter() -> TypeAdapter:
    return TypeAdapter(Annotated[Task, Field(discriminator="name")])


def check_estimators(task: Task, own: Collection[str]) -> None:
    """Refuse a task that names an estimator which not exactly one of project and command has.

    Raises:
        ConfigError: naming those that there are, or the one that there is twice.
    """
    if taken := sorted(ESTIMATORS.keys() & {*own}):
        raise ConfigError(
            f"estimators.{taken[0]} has the name of one of the project's: use another name."
        )
    for name in getattr(task, "estimators", ()):
        if name not in ESTIMATORS and name not in own:
            raise ConfigError(KEYS["task.estimators"].complain("task.estimators", task.estimators))


def unknown_key(key: str) -> ConfigError:
    """The sentence about a key that is not there."""
    key = f"{key:.200}"
    if key in KEYS:
        group = key.rpartition(".")[0].replace(".", "/")
        return ConfigError(f"{key} is not a setting here: the {group} chosen doesn't have it.")
    close = difflib.get_close_matches(key, KEYS, 1, 0.5)
    remedy = f"did you mean {close[0]}?" if close else "remove it."
    return ConfigError(f"{key} is not a setting: {remedy}")


def _sentence(error: ValidationError, plain: dict, within: tuple[str, ...] = ()) -> str:
    """About the first mistake; a wrong value comes before a missing one, which it may cause."""
    mistakes = error.errors(include_url=False, include_context=False)
    mistake = next((m for m in mistakes if m["type"] != "missing"), mistakes[0])
    path = [*within, *mistake["loc"]]
    if path[0] == "task" and path[1:2] and path[1] in TASKS:
        del path[1]  # pydantic's mark of which task it is
    name = ".".join(map(str, path))
    known = _longest_known(path)
    if mistake["type"] == "missing":
        return f"{name} is missing: leave it where it was, or give it a value."
    if mistake["type"] == "extra_forbidden":
        return str(unknown_key(name))
    if mistake["type"].startswith("union_tag"):
        known = "task.name"
    if known:
        return KEYS[known].complain(known, _value(plain, known))
    group = name.replace(".", "/")
    return (
        f"{name:.200}={mistake['input']!r:.200} is not valid: use one of the choices of {group}=…."
    )


def _longest_known(path: Sequence[str | int]) -> str | None:
    """The setting that a path is in: pydantic's paths go on with list indices and types."""
    names = (".".join(map(str, path[:end])) for end in range(len(path), 0, -1))
    return next((name for name in names if name in KEYS), None)


def _value(plain: dict, key: str) -> Any:
    value: Any = plain
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _check_combinations(settings: Settings) -> None:
    """What must hold between settings, the model's geometry aside."""
    if settings.train.checkpoint_activations and settings.model.batch_norm:
        raise ConfigError(
            "train.checkpoint_activations=true with model.batch_norm=true would count every batch "
            "twice: use one of them."
        )
    _check_objective(settings)


def check_warm_up(settings: Settings) -> None:
    """Every key of a KL's weight that rises once is felt in training.

    Of new runs alone: an earlier version let these pass, and what it trained still loads.

    Raises:
        ConfigError: otherwise.
    """
    model, epochs = settings.model, settings.train.max_epochs
    if model.objective is not None or model.beta_cycles > 1 or model.beta_ramp is not None:
        return
    if model.warmup and model.beta_start == model.beta_end:
        raise ConfigError(
            f"model.warmup={model.warmup} changes nothing where beta_start and beta_end are both "
            f"{model.beta_end}: add model.beta_start=0, or leave it out."
        )
    if model.beta_start != model.beta_end and not model.warmup:
        raise ConfigError(
            f"model.beta_start={model.beta_start} and model.beta_end={model.beta_end} differ, and "
            "the KL's weight does not rise from one to the other: add model.warmup=… or "
            "model.beta_ramp=…, or give both one value for a constant weight."
        )
    if model.warmup >= epochs:
        raise ConfigError(
            f"model.warmup={model.warmup} leaves none of train.max_epochs={epochs} at "
            f"model.beta_end={model.beta_end}: use fewer epochs of it, or model.beta_ramp=…, a "
            "share of them."
        )


def _check_objective(settings: Settings) -> None:
    """What must hold between the keys of the loss, and that each of them is read by something."""
    model, decoder = settings.model, settings.model.decoder
    schedule = ("beta_cycles", "beta_ramp", "kl_balance")
    changed = [key for key in schedule if getattr(model, key) not in (1, None, False)]
    if changed and model.objective is not None:
        raise ConfigError(
            f"model.{changed[0]}={getattr(model, changed[0])} is not read by an objective of one's "
            "own: leave out one of them."
        )
    try:
        beta = beta_schedule(settings)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if model.kl_balance and (beta.start == beta.end or not (beta.warmup or beta.ramp)):
        raise ConfigError(
            "model.kl_balance=true weighs the layers while the KL's weight rises, which it does "
            "not: use model.beta_start=0 with model.warmup=… or model.beta_ramp=…."
        )
    if decoder.posterior == "committed" and 0 < model.free_bits_thr <= (decoder.delta or 0):
        raise ConfigError(
            f"model.free_bits_thr={model.free_bits_thr} is never reached, since "
            f"model.decoder.delta={decoder.delta} keeps every latent above it: leave it out."
        )
