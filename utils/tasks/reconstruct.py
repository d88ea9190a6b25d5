"""task=reconstruct: pictures of images rebuilt from their latents."""

from pathlib import Path

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from utils.terminal import Terminal


def reconstruct(
    model: LadderVAE, settings: dict, batches: EvaluationBatches, output: Path, terminal: Terminal
) -> None:
    """task=reconstruct: pictures of images rebuilt from all and from the top latents."""
    from utils.report import pictures
    from utils.report.drawing import save

    x = batches.first(settings["task"]["num_images"])
    for drawing in pictures.draw_reconstructions(model, x, settings["train"]["seed"]):
        terminal.line(str(save(drawing, output)))
