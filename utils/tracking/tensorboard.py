"""A run's metrics for TensorBoard: event files in the run's folder."""

from pathlib import Path

import numpy as np
import torch

from utils.tracking.sinks import Sink


class TensorBoardSink(Sink):
    """Writes by torch.utils.tensorboard, over optimiser steps.

    Raises:
        ValueError: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path):
        try:
            from torch.utils import tensorboard
        except ImportError as error:
            raise ValueError(
                "wandb.tensorboard=true needs TensorBoard: pip install -e '.[tensorboard]'."
            ) from error
        self.open, self.folder, self.writer = tensorboard.SummaryWriter, str(folder), None

    def begin(self, rows: list[dict]) -> None:
        """Start a file; rows of earlier files after the last one here are hidden."""
        self.writer = self.open(self.folder, purge_step=rows[-1]["step"] + 1 if rows else 0)

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """A scalar per key, and the epoch."""
        for key, value in {"epoch": epoch, **values}.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """Images by file name."""
        from matplotlib.image import imread

        for path in paths:
            pixels = imread(path)[..., :3]
            self.writer.add_image(f"figures/{path.stem}", pixels, step, dataformats="HWC")

    def histograms(self, values: dict[str, list[float]], epoch: int, step: int) -> None:
        """Histograms by key."""
        for key, numbers in values.items():
            self.writer.add_histogram(key, torch.from_numpy(np.array(numbers)), step)

    def summary(self, values: dict) -> None:
        """Final results as text."""
        rows = [f"{key}: {value}" for key, value in values.items()]
        self.writer.add_text("summary", "  \n".join(rows))

    def close(self, failed: bool) -> None:
        """Flush and close the file."""
        if self.writer:
            self.writer.close()
