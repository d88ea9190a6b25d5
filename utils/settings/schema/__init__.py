"""Every setting: what it may hold, and whether it determines the result; configs/ explains each.

Groups are open only where a `_target_` takes arguments of its own. A key that some choices of a
group lack has no value there (None); given, it must be valid all the same.
"""

from typing import Annotated, Literal

from pydantic import Field, PrivateAttr

from utils.settings.kinds import FREE, Key, Wanted, accepts, is_safe_name, keys
from utils.settings.schema.dataset import Dataset
from utils.settings.schema.model import Model
from utils.settings.schema.ood import Ood
from utils.settings.schema.task import TASKS, Task
from utils.settings.schema.train import Train
from utils.settings.schema.types import Group, Part, Path, Text
from utils.settings.schema.wandb import Wandb

Own = Annotated[
    dict[str, Part], Wanted("classes of your own by name, each with its _target_"), FREE
]


class Settings(Group):
    """All settings of a command, or of a trained model."""

    name: Annotated[
        str,
        accepts(is_safe_name),
        Wanted(
            "experiment=… or a name of your own: up to 100 letters (a-z), digits, dots, hyphens "
            "and underscores, the first a letter or digit"
        ),
    ]
    checkpoint: Annotated[Annotated[Text, Wanted("a path of a checkpoint")] | None, FREE]
    run: Annotated[Annotated[Text, Wanted("the folder of a run")] | None, FREE]
    runs: Annotated[list[Path], FREE]
    ood: Ood = Ood()
    runs_dir: Annotated[Text, Wanted("a folder"), FREE]
    dataset: Dataset
    model: Model
    train: Train
    wandb: Wandb
    task: Annotated[Task, Field(discriminator="name")]
    estimators: Own
    metrics: Own
    trackers: Own

    _plain: dict = PrivateAttr(default_factory=dict)

    @property
    def plain(self) -> dict:
        """As plain containers, key for key as they were composed: what is written down."""
        return self._plain


KEYS: dict[str, Key] = {**dict(keys(Settings)), "task.name": Key(Literal[tuple(TASKS)])}
