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
    x = trained.batches().first(task.num_images)
    if len(x) < 2:
        raise ConfigError(f"task.split={task.split} has one image: interpolation takes two.")
    x = x[: len(x) // 2 * 2]  # pairs
    drawing = pictures.draw_interpolation(trained.model, x, layers, task.steps)
    if trained.job.is_main:
        trained.job.terminal.line(str(save(drawing, trained.output)))
