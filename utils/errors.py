"""Errors that a person can mend: told in one sentence, without a traceback."""

from utils.terminal import printable


class ConfigError(ValueError):
    """A setting is wrong; the message is one sentence with the key, the value and the remedy."""

    def __init__(self, message: str):
        super().__init__(printable(message))  # key and value may come from a file
