"""task=reconstruct: pictures of images rebuilt from all and from the top latents."""

from utils.processes.launch import Processes
from utils.settings.command_line import Command
from utils.tasks.trained import Trained


def reconstruct(command: Command, processes: Processes) -> None:
    """PNG files in a folder; their names on the terminal."""
    from utils.report import pictures
    from utils.report.drawing import save

    trained = Trained.named(command, processes)
    settings = trained.settings
    x = trained.batches().examples(settings.task.num_images)
    for drawing in pictures.draw_reconstructions(trained.model, x, settings.task.noise_seed):
        trained.job.terminal.line(str(save(drawing, trained.output)))
