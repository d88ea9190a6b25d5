"""A run's pictures, drawn while it trains."""

from torch import Tensor

from model import LadderVAE
from utils.runs.folder import RunFolder
from utils.tracking.tracker import Tracker

PICTURED = 10  # images that a run's pictures show


def draw(
    folder: RunFolder, tracker: Tracker, x: Tensor, model: LadderVAE, epoch: int, step: int
) -> None:
    """A run's pictures: the model's on the images x, and KL per layer so far; main process only."""
    if not folder.processes.is_main:
        return
    from utils.report import pictures, plots
    from utils.report.drawing import save

    drawings = pictures.draw_model(model, x, folder.config["train"]["seed"])
    drawings.append(plots.draw_kl(tracker.local.rows()))
    paths = [save(drawing, folder.figures) for drawing in drawings]
    tracker.pictures(paths, epoch, step)
