"""What is recorded of an epoch: its values for the trackers, and its line on the terminal."""

import math
from dataclasses import asdict, dataclass

from utils.evaluation.collapse import CollapseReport


@dataclass(frozen=True)
class TrainingMeans:
    """Means over an epoch's training steps so far, of the images of all processes."""

    loss: float  # bits/dim
    reconstruction: float  # nats per image
    kl: float  # nats per image, all layers
    grad_norm: float
    images_per_second: float  # over all processes

    def summary(self) -> str:
        """What stands behind the progress bar."""
        return f"loss {self.loss:.4f}  KL {self.kl:.2f}  {self.images_per_second:,.0f} images/s"


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch: the means over its training steps, and the bound on the validation set.

    training: None where no step had finite losses and gradients. loss: of validation, bits/dim.
    """

    epoch: int  # the first is 1
    step: int  # optimiser steps done at its end
    skipped_steps: int  # over all epochs so far
    seconds: float  # spent in this epoch's training steps
    beta: float
    learning_rate: float
    training: TrainingMeans | None
    loss: float
    validation: CollapseReport
    active_units: float  # share of all units, those active beyond chance
    per_layer: dict[str, float]  # collapse metrics by key, as collapse/kl_0

    def tracker_values(self) -> dict[str, float]:
        """Every value by the key under which metrics.jsonl and W&B know it."""
        report = self.validation
        training = asdict(self.training) if self.training else {}
        return {
            "train/skipped_steps": self.skipped_steps,
            "train/seconds": self.seconds,
            "train/beta": self.beta,
            "train/lr": self.learning_rate,
            **{f"train/{name}": value for name, value in training.items()},
            "val/loss": self.loss,
            "val/nelbo": report.nelbo,
            "val/reconstruction": report.reconstruction,
            "val/kl": sum(report.kl),
            "val/active_units": self.active_units,
            **self.per_layer,
        }

    def terminal_fields(self, seconds_left: float, improved: bool) -> list[tuple[str, int]]:
        """The epoch in one line, for `Terminal.fields`.

        An asterisk marks the lowest validation loss so far.
        """
        report, training = self.validation, self.training
        hours, seconds = divmod(seconds_left, 3600)
        speed = training.images_per_second if training else 0.0
        parts = [
            (f"epoch {self.epoch:>4}", 0),
            (f"train {training.loss if training else math.nan:.4f}", 3),
            (f"val {self.loss:.4f} bits/dim", 0),
            (f"= {report.nelbo:.2f} nats", 4),
            (f"(reconstruction {report.reconstruction:.2f} + KL {sum(report.kl):.2f})", 1),
            (f"active {self.active_units:.0%}", 5),
            (f"{speed:,.0f} images/s", 2),
            (f"left {hours:.0f}:{seconds // 60:02.0f}:{seconds % 60:02.0f}", 6),
        ]
        if self.skipped_steps:
            parts.append((f"skipped {self.skipped_steps}", 0))
        return [*parts, ("*", 0)] if improved else parts
