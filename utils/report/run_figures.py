"""The pictures of a run while it trains."""

from torch import Tensor

from model import LadderVAE
from utils.runs.folder import RunFolder
from utils.tracking.tracker import Tracker

PICTURED = 10  # images that the pictures reconstruct


def draw(
    folder: RunFolder, tracker: Tracker, x: Tensor, model: LadderVAE, epoch: int, step: int
) -> None:
    """Draw the model's pictures and the KL per layer so far, save and log them; main process only.

    x (B, C, H, W): the images to reconstruct.
    """
    if not folder.processes.is_main:
        return
    from utils.report import pictures, plots
    from utils.report.drawing import save

    drawings = pictures.draw_model(model, x, folder.config["task"]["noise_seed"])
    drawings.append(plots.draw_kl(tracker.local.rows()))
    paths = [save(drawing, folder.figures) for drawing in drawings]
    tracker.pictures(paths, epoch, step)
