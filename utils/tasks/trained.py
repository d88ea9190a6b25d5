"""The trained model that a task is about, with all that using it takes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets.loaders import EvaluationBatches
from model import LadderVAE
from utils import checkpoint
from utils.errors import ConfigError
from utils.files import file_digest
from utils.processes.collectives import check_same, main_first
from utils.processes.job import Job
from utils.processes.launch import Processes
from utils.runs.access import results_folder
from utils.settings.command_line import Command
from utils.settings.identity import of_all_processes
from utils.settings.images import evaluation_batches, splits_of
from utils.settings.schema import Settings
from utils.settings.threads import use_threads


@dataclass(frozen=True)
class Trained:
    """A model on the job's device; its settings, with the task's; its file; where results go.

    digest: of the file as it was read; a run under way may have replaced it since. progress: of the
    run that made it, as far as the file tells.
    """

    model: LadderVAE
    settings: Settings
    file: Path
    digest: str
    output: Path
    job: Job
    progress: dict

    @classmethod
    def named(cls, command: Command, processes: Processes) -> "Trained":
        """The one that checkpoint=… names.

        Raises:
            ConfigError: if it is not set.
        """
        source = command.value("checkpoint")
        if source is None:
            raise ConfigError(
                f"checkpoint is not set: task={command.task.name} needs checkpoint=… (a .pth file "
                "or the folder of a run)."
            )
        return cls.load(source, command, processes)

    @classmethod
    def load(cls, source: str, command: Command, processes: Processes) -> "Trained":
        """The one that `source` names, for the command's task."""
        runs_dir, task = command.value("runs_dir"), command.task
        job = Job.on(command.value("train.device"), processes)
        # Once: it may have to be fetched.
        file = main_first(processes, partial(checkpoint.locate, source, runs_dir))
        content, digest = checkpoint.content_and_digest(file)
        how = (command.overrides, job.device, command.trusted, command.replaced)
        model, settings = checkpoint.load_content(content, file, *how)
        if processes.world > 1:
            check_same({"checkpoint": digest, **of_all_processes(settings.plain)})
        use_threads(settings, processes)
        output = results_folder(task.output, checkpoint.output_folder(source, runs_dir))
        return cls(model, settings, file, digest, output, job, content.get("progress") or {})

    def named_file(self, source: str) -> dict[str, Path]:
        """The file by its name; nothing if it is no more what was read."""
        current = self.file.is_file() and file_digest(self.file) == self.digest
        return {source: self.file} if current else {}

    def layers(self) -> list[int]:
        """The layers that the task is about.

        Raises:
            ConfigError: if the model has no such layer.
        """
        try:
            return self.model.check_layers(self.settings.task.layers)
        except ValueError as error:
            raise ConfigError(f"task.{error}") from error

    def batches(self, num_images: int | None = None) -> EvaluationBatches:
        """The images that the task asks for; num_images: how many, where it has no such key."""
        task = self.settings.task
        count = getattr(task, "num_images", num_images)
        splits = splits_of(self.settings, self.job)
        return evaluation_batches(self.settings, splits, task.split, self.job, count)
