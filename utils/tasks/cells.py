"""The cells of the matrix: which runs there are to be, and what of them is there already."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig

from utils.errors import ConfigError
from utils.evaluation.compared_runs import sampled_as
from utils.evaluation.record import conditions
from utils.evaluation.scoring import PROTOCOL
from utils.report.matrix_cells import ESTIMATOR, CellRun, Report, read_cell
from utils.runs.access import is_locked
from utils.runs.folder import RESULTS
from utils.settings.command_line import Command
from utils.settings.composition import compose, composed_settings
from utils.settings.identity import leaves, run_name
from utils.settings.schema import Settings
from utils.settings.schema.model import Model
from utils.settings.schema.task import MatrixTask
from utils.settings.trust import CONFIGS

CONTEXT = "context"  # the arm that is another experiment
SET_ANEW = ("task", "train.seed", "runs_dir")  # overrides that each cell has of its own


@dataclass(frozen=True)
class Arm:
    """One or several remedies together.

    overrides: of the command that trains it, without a seed; settings: what it sets, for the page.
    """

    label: str
    overrides: tuple[str, ...]
    settings: dict[str, str]


@dataclass(frozen=True)
class Cell:
    """One run of the matrix, and the folder that it has."""

    arm: Arm
    seed: int
    folder: Path
    task: MatrixTask
    model: Model

    @property
    def name(self) -> str:
        """As messages and the page name it."""
        return f"{self.arm.label}, seed {self.seed}"

    @property
    def trained(self) -> bool:
        """Whether training has ended; the report may be missing still."""
        return (self.folder / f"{RESULTS}.json").exists()

    @property
    def locked(self) -> bool:
        """Whether another process trains it."""
        return is_locked(self.folder)

    def result(self) -> CellRun | None:
        """Its figures; None while they are not there, or were evaluated in another way."""
        try:
            run = read_cell(self.arm.label, self.seed, self.folder)
        except ConfigError:
            return None
        return run if self._as_asked(run.report) else None

    def _as_asked(self, report: Report) -> bool:
        images = min(self.task.mi_images, report.bound.images)
        same = (conditions(self.task), images) == (report.conditions, report.information_images)
        return same and sampled_as(report, self.model)


def plan(command: Command) -> list[Cell]:
    """The cells, seed by seed: a matrix that was interrupted has all arms for the first seeds.

    Raises:
        ConfigError: if an arm is unknown, the experiment cannot take it, or its scores would not
            compare with the others'.
    """
    task, cells, kinds = command.task, {}, {}
    composed = [(arm, compose(list(arm.overrides))) for arm in arms(command)]
    for seed in task.seeds:
        for arm, config in composed:
            config.train.seed = seed
            settings = _settings(arm, config)
            folder = Path(settings.runs_dir, run_name(settings)).absolute()
            cell = Cell(arm, seed, folder, task, settings.model)
            cells.setdefault(folder, cell)  # none + context is context
            kinds.setdefault((settings.model.is_k, PROTOCOL[settings.model.likelihood]), arm.label)
    if len(kinds) > 1:
        (first, label), (second, other) = list(kinds.items())[:2]
        raise ConfigError(
            f"{label} would be scored with model.is_k={first[0]} ({first[1]}), {other} with "
            f"model.is_k={second[0]} ({second[1]}), which do not compare: give the command one "
            "model.is_k and one model.likelihood."
        )
    return list(cells.values())


def arms(command: Command) -> list[Arm]:
    """Those of task.arms, and each of them with each of task.with.

    Raises:
        ConfigError: if one is unknown, or the command names a remedy itself.
    """
    task, own = command.task, []
    for override in command.overrides:
        if override.startswith("remedy=") and override != "remedy=none":
            raise ConfigError(
                f"{override} is not for task=matrix, which has an arm for each remedy: name it in "
                "task.arms or task.with."
            )
        if not override.lstrip("+~").startswith(SET_ANEW):
            own.append(override)
    named = [tuple(arm.split("+")) for arm in task.arms]
    named += [(other, *parts) for other in task.crossed for parts in named if other not in parts]
    return [_arm(command, parts, own) for parts in dict.fromkeys(named)]


def _arm(command: Command, parts: Sequence[str], own: Sequence[str]) -> Arm:
    changes = dict(change for part in parts for change in _changes(part, own).items())
    if "experiment" in changes:
        own = [override for override in own if not override.startswith("experiment=")]
    folders = [f"file://{folder}" for folder in _own_configs()]
    task = command.task
    overrides = [
        *([f"hydra.searchpath={json.dumps(folders)}"] if folders else []),
        *own,
        *(f"{'' if key == 'experiment' else '++'}{key}={value}" for key, value in changes.items()),
        f"runs_dir={_quoted(command.value('runs_dir'))}",
        f"task.estimators=[{ESTIMATOR}]",
        f"task.noise_seed={task.noise_seed}",
        f"task.mi_images={task.mi_images}",
    ]
    label = " + ".join(part for part in parts if part != "none") or "none"
    return Arm(label, tuple(overrides), changes)


def _changes(part: str, own: Sequence[str]) -> dict[str, str]:
    """The overrides of one remedy: key -> value."""
    if part == CONTEXT:
        return {"experiment": _with_context(own)}
    folders = [*_own_configs(), CONFIGS]
    paths = [folder / "remedy" / f"{part}.yaml" for folder in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        known = {file.stem for path in paths for file in path.parent.glob("*.yaml")}
        choices = ", ".join([*sorted(known), CONTEXT])
        raise ConfigError(
            f"task.arms or task.with names {part!r:.100}, which is no remedy: use {choices}, or "
            "several joined by +."
        )
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in leaves(content)
    }


def _own_configs() -> list[Path]:
    """Folders that the command adds to configs/ by --config-dir."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    return [Path(s.path) for s in sources if s.schema == "file" and s.provider == "command-line"]


def launcher_overrides() -> list[str]:
    """Hydra's launcher as the command names it, which is to run the cells: overrides for -m."""
    if not HydraConfig.initialized():
        return []
    given = HydraConfig.get().overrides.hydra
    if not any(override.startswith("hydra/launcher=") for override in given):
        return []
    return [o for o in given if o.lstrip("+").startswith(("hydra/launcher", "hydra.launcher"))]


def _with_context(own: Sequence[str]) -> str:
    """The experiment like the command's that has a context."""
    name = next((o.partition("=")[2] for o in own if o.startswith("experiment=")), "")
    sibling = name.replace("ladder", "dct_ladder")
    if "dct" in name or not (CONFIGS / "experiment" / f"{sibling}.yaml").is_file():
        raise ConfigError(
            f"task.arms or task.with names context, and experiment={name or 'null'} has no sibling "
            "with one in configs/experiment, as digits_ladder has digits_dct_ladder: leave context "
            "out."
        )
    return sibling


def _settings(arm: Arm, config: object) -> Settings:
    try:
        return composed_settings(config)
    except ConfigError as error:
        raise ConfigError(f"The arm {arm.label} does not fit this experiment: {error}") from error


def _quoted(text: str) -> str:
    """A text as Hydra's command line takes it, whatever is in it."""
    return "'" + text.replace("'", r"\'") + "'"
