"""Why training ends before its last epoch."""


class CannotContinue(Exception):
    """Training must not go on; the message is the reason, a clause without step or remedy."""


class TrainingStopped(RuntimeError):
    """Training cannot go on; the message says why and where the last good checkpoint is."""
