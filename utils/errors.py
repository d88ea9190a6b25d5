"""Errors that a person can mend: told in one sentence, without a traceback."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from utils.terminal import printable


class ConfigError(ValueError):
    """A setting is wrong; the message is one sentence with the key, the value and the remedy."""

    def __init__(self, message: str):
        super().__init__(printable(message))  # key and value may come from a file


def exit_status(write: Callable[[], Iterable[Path]]) -> int:
    """Print the files that a module's own command writes, or its error; the exit status."""
    try:
        for path in write():
            print(path)
    except (ConfigError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0
