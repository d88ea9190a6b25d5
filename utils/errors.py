"""Errors that a person can mend: told in one sentence, without a traceback."""


class ConfigError(ValueError):
    """A setting is wrong; the message is one sentence with the key, the value and the remedy."""
