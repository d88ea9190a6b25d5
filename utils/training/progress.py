"""Where a run is: epochs, steps, the best validation loss, and this epoch's running sums."""

import math
from dataclasses import dataclass, field

from utils.training.metrics import TrainingMeans


@dataclass
class Progress:
    """What a run remembers between steps; its fields are stored in checkpoints under their names.

    sums: over this epoch's steps with finite losses and gradients, the number of steps, loss
    (bits/dim), gradient norm, reconstruction (nats) and KL per layer (nats), each a mean over the
    images of all processes, which all have the same sums.
    """

    epoch: int = 0
    batch: int = 0  # optimiser steps done in this epoch
    step: int = 0  # optimiser steps done, skipped ones included
    best: float = math.inf  # lowest validation loss, bits/dim
    best_epoch: int = 0
    skipped: int = 0  # skipped steps in all
    skipped_in_a_row: int = 0
    seconds: float = 0.0  # spent in training steps, this epoch
    sums: list[float] = field(default_factory=list)

    def advance(self, steps: int = 1) -> None:
        """Count steps as done; a negative number takes them back."""
        self.step, self.batch = self.step + steps, self.batch + steps

    def skip(self) -> None:
        """Count one more skipped step."""
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1

    def record_losses(self, losses: list[float], norm: float) -> None:
        """Add a step to the epoch's sums: [loss, reconstruction, KL per layer…], gradient norm."""
        loss, reconstruction, *kl = losses
        row = [1.0, loss, norm, reconstruction, *kl]
        sums = self.sums or [0.0] * len(row)
        self.sums = [a + b for a, b in zip(sums, row, strict=True)]

    def means(self, batch_size: int) -> TrainingMeans | None:
        """This epoch's means so far; None where no step had finite losses and gradients.

        batch_size: images per step, over all processes.
        """
        if not self.sums:
            return None
        steps, loss, norm, reconstruction, *kl = self.sums
        return TrainingMeans(
            loss=loss / steps,
            reconstruction=reconstruction / steps,
            kl=sum(kl) / steps,
            grad_norm=norm / steps,
            images_per_second=batch_size * steps / self.seconds,
        )

    def end_epoch(self, loss: float) -> bool:
        """Count the epoch as done; returns whether its validation loss is the lowest so far."""
        self.epoch, self.batch, self.seconds, self.sums = self.epoch + 1, 0, 0.0, []
        improved = loss < self.best
        if improved:
            self.best, self.best_epoch = loss, self.epoch
        return improved
