"""What settings out of a file may hold: plain values, and no code but what is named here."""

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from itertools import chain, islice
from typing import Any

import yaml

from utils.errors import ConfigError
from utils.version import ROOT

CONFIGS = ROOT / "configs"
INTERPOLATION = "${"
MOST_VALUES, MOST_LEVELS = 100_000, 30  # settings have some 150, in 5 levels
MOST_INTEGER = 2**63


def plain_data(content: object, source: str) -> dict:
    """Settings out of a file (`source` in messages), as data: what could be more is refused.

    Raises:
        ConfigError: where they hold other things than mappings with texts as keys, lists, texts,
            numbers, booleans and null; or an interpolation, which would read this process's
            environment or other settings.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{source} holds no settings: get a good copy.")
    _check_size(content, source)
    return _plain(content, "", source)


def _check_size(content: dict, source: str) -> None:
    """Few bytes may hold a list of lists of lists that are all the same one, or in itself."""
    level, count = [content], 0
    for _ in range(MOST_LEVELS):
        inner = (
            v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))
        )
        level = list(islice(chain.from_iterable(inner), MOST_VALUES))
        count += len(level)
        if not level and count < MOST_VALUES:
            return
    raise ConfigError(f"{source} nests its settings without end: get a good copy.")


def _plain(value: object, key: str, source: str) -> Any:
    if isinstance(value, dict):
        found = {}
        for name, inner in value.items():
            if type(name) is not str:
                kind = type(name).__name__
                raise ConfigError(f"{source} has a {kind} for a key, no text: get a good copy.")
            inside = f"{key}.{name:.100}".lstrip(".")
            _plain(name, f"key {inside!r}", source)
            found[name] = _plain(inner, inside, source)
        return found
    if isinstance(value, list):
        return [_plain(item, f"{key}.{index}", source) for index, item in enumerate(value)]
    if type(value) is str and INTERPOLATION in value:
        raise ConfigError(
            f"{source} is not to be trusted: its {key} holds an interpolation ({value[:60]!r}), "
            "which was not followed; get a good copy."
        )
    if type(value) is int and abs(value) >= MOST_INTEGER:
        raise ConfigError(f"{source} has a number without end as its {key}: get a good copy.")
    if value is not None and type(value) not in (str, bool, int, float):
        raise ConfigError(
            f"{source} is not to be trusted: its {key} is a {type(value).__name__}, which no "
            "setting is; get a good copy."
        )
    return value


def targets(node: Any) -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every `_target_` in settings, however deep: what building calls."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if key == "_target_":
            yield key, str(value)
        elif isinstance(value, (dict, list)):
            yield from ((f"{key}.{inner}", target) for inner, target in targets(value))


def targets_named_in(overrides: Sequence[str]) -> set[str]:
    """The targets that a command line names."""
    pairs = (override.partition("=") for override in overrides)
    return {value for key, _, value in pairs if key.endswith("_target_")}


def check_targets(plain: dict, trusted: Collection[str], source: str) -> None:
    """Settings that came in a file call nothing but what is named here.

    Raises:
        ConfigError: where they name what is in no file of configs/ and is not trusted (named by
            the command); what lies beside the file does not count, since it came the same way. And
            where they name a data set, which fetches and writes files, in another place than its
            own.
    """
    for key, target in targets(plain):
        if target not in trusted and target not in targets_in_configs():
            raise ConfigError(
                f"{source} names code outside this project, {key}={target:.200}, which was not "
                f"run: add {key}={target:.200} to the command if you trust it."
            )
        if target.startswith("datasets.") and key != "dataset._target_":
            raise ConfigError(
                f"{source} is not to be trusted: its {key} names a data set, {target:.200}, which "
                "was not read; get a good copy."
            )


@cache
def targets_in_configs() -> frozenset[str]:
    """What files in configs/ call."""
    contents = (yaml.safe_load(p.read_text(encoding="utf-8")) for p in CONFIGS.rglob("*.yaml"))
    return frozenset(target for content in contents for _, target in targets(content or {}))
