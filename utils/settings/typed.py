"""The words of a command line, before Hydra reads them: quoted where they must be, or refused."""

import difflib
import re
from pathlib import Path

from utils.errors import ConfigError
from utils.settings.schema import KEYS
from utils.settings.trust import CONFIGS

# Options of the command whose value is the next word.
FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp")
FLAGS_WITH_VALUE += ("--package", "-p", "--cfg", "-c", "--info", "-i", "--experimental-rerun")
PLAIN = re.compile(r"[\w /\\+.$%*@?|:,-]*", re.ASCII)  # what Hydra's grammar takes unquoted
FUNCTION = re.compile(  # of Hydra's, in a value
    r"(int|float|bool|str|json_str|choice|range|interval|glob|sort|shuffle|tag|extend_list)\(.*\)"
)


def check_words(words: list[str]) -> None:
    """Quote, in place, texts that Hydra would take for something else; refuse what is no setting.

    Raises:
        ConfigError: in one sentence, with what to type instead.
    """
    flagged, sweep = False, bool({"-m", "--multirun"} & set(words))
    for index, word in enumerate(words):
        key, equals, value = word.partition("=")
        if word.startswith("-"):
            flagged = word in FLAGS_WITH_VALUE
        elif flagged:
            flagged = False
        elif not equals and not word.startswith("~"):
            raise ConfigError(_no_setting(word))
        elif equals:
            _check_group(key.lstrip("+"), value)
            if not (sweep and "," in value):  # several values
                words[index] = _quoted(key, value)


def _no_setting(word: str) -> str:
    """The sentence about a word that sets nothing."""
    names = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
    close = difflib.get_close_matches(word.replace("-", "_"), names, 1, 0.8)
    remedy = f"did you mean experiment={close[0]}?" if close else "use key=value."
    return f"{word} sets nothing: {remedy}"


def _check_group(key: str, value: str) -> None:
    """A group of settings is chosen with slashes in its name.

    Raises:
        ConfigError: where it has dots.
    """
    folder = CONFIGS / Path(*key.split("."))
    if "." not in key or not folder.is_dir() or value.startswith(("{", "$")) or value == "null":
        return
    group, choices = key.replace(".", "/"), sorted(path.stem for path in folder.glob("*.yaml"))
    if value in choices:
        raise ConfigError(f"{key}={value} is no single setting: did you mean {group}={value}?")
    raise ConfigError(
        f"{key}={value} is no single setting: choose {group}= one of {', '.join(choices)}."
    )


def _quoted(key: str, value: str) -> str:
    """key=value; quoted where a number, or what Hydra's grammar lacks, stands for a text.

    Raises:
        ConfigError: for a key that is not known, with the quoted form to type; for a text that the
            key does not take.
    """
    kind, name = KEYS.get(key.lstrip("+")), f"{key}={value}"
    if kind and _is_number(value):
        return (
            f"{key}='{value}'" if kind.accepts(value) and not kind.accepts(float(value)) else name
        )
    as_it_is = value[:1] in ("'", '"', "[", "{", "$") or FUNCTION.fullmatch(value)
    if as_it_is or PLAIN.fullmatch(value):
        return name
    inner = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", value)
    quoted = "'" + re.sub(r"(\\+)$", r"\1\1", inner) + "'"
    if kind is None:
        raise ConfigError(f'{name} has characters that must be quoted: use "{key}={quoted}".')
    if not kind.accepts(value):
        raise ConfigError(kind.complain(key.lstrip("+"), value))
    return f"{key}={quoted}"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
