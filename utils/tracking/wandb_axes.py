"""What W&B can plot a run's figures over: epochs, steps, images seen, hours of training."""

import math

AXES = ("epoch", "step", "images_seen", "hours")


class Axes:
    """A run's place on each axis, followed through the rows of its epochs from the first on.

    `hours` are those of training steps alone, without validation and whatever lay between two parts
    of a run. Rows of earlier versions lack their time: from there on there are no hours.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size  # of all processes
        self.seconds = 0.0

    def advance(self, row: dict[str, float]) -> None:
        """Add an epoch."""
        self.seconds += row.get("train/seconds", math.nan)

    def at(self, epoch: int, step: int) -> dict[str, float]:
        """The columns of a row."""
        hours = {} if math.isnan(self.seconds) else {"hours": self.seconds / 3600.0}
        return {"epoch": epoch, "step": step, "images_seen": step * self.batch_size, **hours}
