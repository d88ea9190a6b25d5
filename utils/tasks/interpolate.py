"""task=interpolate: pictures on the way from one image to another through the latents."""

from utils.errors import ConfigError
from utils.processes.launch import Processes
from utils.settings.command_line import Command
from utils.tasks.trained import Trained


def interpolate(command: Command, processes: Processes) -> None:
    """interpolation.png in a folder; its name on the terminal."""
    from utils.report import pictures
    from utils.report.drawing import save

    trained = Trained.named(command, processes)
    task, layers = trained.settings.task, trained.layers()
    x = trained.batches(2 * task.pairs).examples(2 * task.pairs)
    if len(x) < 2 * task.pairs:
        raise ConfigError(
            f"task.pairs={task.pairs} takes {2 * task.pairs} images, task.split={task.split} has "
            f"{len(x)}: use fewer."
        )
    drawing = pictures.draw_interpolation(trained.model, x, layers, task.steps)
    if trained.job.is_main:
        trained.job.terminal.line(str(save(drawing, trained.output)))
