"""Training a finished run longer: the settings of the longer run, which name it."""

import copy

from utils.errors import ConfigError
from utils.settings.check import check
from utils.settings.identity import determining
from utils.settings.schema import Settings

ALLOWED = "train.max_epochs"


def resumed(recorded: Settings, wanted: Settings, source: str) -> Settings:
    """The settings to go on with: a run's own, or for more epochs those of the longer run.

    recorded: the run's own settings; wanted: with the command's overrides; source: in messages.

    Raises:
        ConfigError: if these would make it another run.
    """
    before, after = determining(recorded.plain), determining(wanted.plain)
    changed = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    others = [key for key in changed if key != ALLOWED]
    if others:
        key = others[0]
        raise ConfigError(
            f"{source} continues a run with its own settings, and {key}={after.get(key)} is not "
            f"its own ({before.get(key)}): leave it out, or begin a run of its own with these "
            "weights by train.init_from=…."
        )
    if not changed:
        return wanted
    if after[ALLOWED] < before[ALLOWED]:
        raise ConfigError(
            f"{ALLOWED}={after[ALLOWED]} is less than the {before[ALLOWED]} of the run that "
            f"{source} continues: name more, or leave it out."
        )
    return extended(recorded, after[ALLOWED])


def extended(settings: Settings, epochs: int) -> Settings:
    """The settings of the run that this one becomes when it is trained for so many epochs."""
    plain = copy.deepcopy(settings.plain)
    train = plain["train"]
    _set_length(train, epochs)
    train["extended_from"] = [*(train["extended_from"] or []), settings.train.max_epochs]
    return check(plain, to_build=False)


def before_extension(settings: Settings) -> Settings | None:
    """The settings of the shorter run; None where there was none."""
    if not settings.train.extended_from:
        return None
    plain = copy.deepcopy(settings.plain)
    *earlier, epochs = plain["train"]["extended_from"]
    _set_length(plain["train"], epochs)
    plain["train"]["extended_from"] = earlier or None
    return check(plain, to_build=False)


def _set_length(train: dict, epochs: int) -> None:
    """Set train.max_epochs, and the length of a schedule that ends with it."""
    scheduler = train["scheduler"]
    if scheduler and scheduler.get("T_max") == train["max_epochs"]:
        scheduler["T_max"] = epochs
    train["max_epochs"] = epochs
