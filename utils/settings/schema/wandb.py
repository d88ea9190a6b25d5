"""wandb: the record's mirror."""

from typing import Annotated, Literal

from utils.settings.kinds import (
    Wanted,
)
from utils.settings.schema.types import Group, Text


class WandbSetup(Group):
    """wandb.setup: where at W&B."""

    entity: Text | None
    project: Text
    mode: Literal["auto", "online", "offline", "disabled"]


class Wandb(Group):
    """wandb: the record's mirror."""

    setup: WandbSetup
    api_key: Text | None
    group: Text | None
    job_type: Text | None
    tags: list[Annotated[Text, Wanted("a word")]]
    notes: Text | None
    watch: bool
    save_code: bool
    record: bool
    tensorboard: bool
