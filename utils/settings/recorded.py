"""Settings out of a checkpoint or a run's folder, with a command line's overrides over them."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from utils.errors import ConfigError
from utils.settings.check import check
from utils.settings.composition import compose, explain, resolve
from utils.settings.identity import ELSEWHERE, FORMER
from utils.settings.schema import Settings
from utils.settings.trust import CONFIGS, check_targets, plain_data
from utils.terminal import one_line

OWN_CLASSES = ("estimators", "metrics", "trackers")  # every command names its own
IMPORTANCE_SAMPLING = ("is_k_per_context", "is_k_paths")  # keys under model of later versions
OF_THE_TASK = (*ELSEWHERE, "checkpoint", "run", "runs", "runs_dir", "hydra")  # not of the model


def recorded_settings(
    content: object,
    overrides: Sequence[str],
    source: str = "The checkpoint",
    trusted: Collection[str] | None = (),
    replaced: Mapping[str, object] = MappingProxyType({}),
) -> Settings:
    """A trained model's settings, from what a file (`source` in messages) holds of them.

    A whole group may be replaced only for `dataset`; overrides that belong to the task at hand are
    left out.

    trusted: targets of one's own that they may name (see `check_targets`); None where nothing of
    them will be built, so that they may name any. replaced: groups that the command brings itself,
    such as its task; they take the recorded ones' place.

    Raises:
        ConfigError: if an override would make it another model, or the settings are more than data
            or not valid.
    """
    recorded = plain_data(content, source)
    merged = OmegaConf.create(_with_later_defaults(recorded))
    for override in sorted(_parsed(overrides), key=lambda o: "." in o.key_or_group):
        _apply(override, merged, recorded)
    plain = {**resolve(merged), **replaced}
    if trusted is not None:
        check_targets(plain, trusted, source)
    settings = check(plain, to_build=trusted is not None)
    _check_shape(recorded, settings)
    return settings


def _parsed(overrides: Sequence[str]) -> list[Override]:
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise explain(error) from error


def _apply(override: Override, merged: DictConfig, recorded: dict) -> None:
    """One override, laid over the settings in place."""
    key, value = override.key_or_group, override.value()
    if key.split(".")[0].split("/")[0] in OF_THE_TASK:
        return
    if key == "dataset":
        merged.dataset = compose([override.input_line]).dataset
    elif key in ("experiment", "name"):
        name = recorded.get("name")
        if value != name:
            raise ConfigError(
                f"{key}={value} contradicts the checkpoint, which is of {name} and has its "
                "settings: leave it out."
            )
    elif "." in key and "/" not in key:
        try:
            OmegaConf.update(merged, key, value, force_add=True)
        except (ValueError, TypeError, AttributeError, OmegaConfBaseException) as error:
            raise ConfigError(
                f"{key}={value} has no place in the checkpoint's settings ({one_line(error)}): get "
                "a good copy, or leave it out."
            ) from error
    else:
        raise ConfigError(f"{override.input_line} would make it another model: leave it out.")


def _with_later_defaults(recorded: dict) -> dict:
    """Settings of an earlier version, with the defaults of what came later; the model's stay."""
    found = {**recorded, **{key: {} for key in OWN_CLASSES}}
    for group in ("train", "wandb"):
        own = recorded.get(group, {})
        found[group] = {**_defaults(group), **own} if isinstance(own, dict) else own
    if isinstance(found["wandb"], dict):
        found["wandb"]["api_key"] = None  # a file has none of ours
    if isinstance(model := recorded.get("model"), dict):
        sampling = {key: _defaults("model", "base")[key] for key in IMPORTANCE_SAMPLING}
        kept = {key: value for key, value in model.items() if f"model.{key}" not in FORMER}
        found["model"] = {**sampling, **kept}
    return found


def _defaults(group: str, name: str = "defaults") -> dict:
    content = OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))
    content.pop("defaults", None)
    return content


def _check_shape(recorded: dict, wanted: Settings) -> None:
    """A model is used on images of the shape that it was trained on.

    Raises:
        ConfigError: on others.
    """
    trained, dataset = recorded["dataset"], wanted.dataset
    pairs = ((trained["channels"], trained["image_size"]), (dataset.channels, dataset.image_size))
    before, now = (f"{channels}×{size}×{size}" for channels, size in pairs)
    if before != now:
        raise ConfigError(
            f"dataset={dataset.name} has images of {now}, the checkpoint is of a model of {before} "
            f"({trained['name']}): name a data set of that shape."
        )
