"""ood: the other images of task=ood."""

from typing import Annotated

from utils.settings.kinds import Wanted, accepts, is_safe_name
from utils.settings.schema.types import Group, Path


class Ood(Group):
    """ood: which data set a model is to tell from its own."""

    dataset: (
        Annotated[str, accepts(is_safe_name), Wanted("the name of a data set in configs/dataset")]
        | None
    ) = None
    root: Path | None = None
    invert: bool = False
