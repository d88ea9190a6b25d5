"""Whether a run can go on from a checkpoint's state: it came in a file, and may be of another run.

PyTorch's optimisers and schedules take over what they are given without a look at it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from utils.terminal import shown
from utils.training.progress import Progress

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf")  # of Adam and its kin


def check_optimizer(saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Its moments are as large as its parameters, and its settings of the kind that it has.

    Raises:
        ValueError: naming the first that is not.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entries in saved["state"].items():
        for name in set(MOMENTS) & set(entries):
            if entries[name].shape != parameters[index].shape:
                raise ValueError(f"optimizer.state.{index}.{name} has another shape")
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        _check_kinds({k: v for k, v in group.items() if k in own}, own, "param_groups")


def check_scheduler(saved: Mapping[str, Any], scheduler: LRScheduler | ReduceLROnPlateau) -> None:
    """What it remembers replaces nothing that it does.

    Raises:
        ValueError: naming the first that would.
    """
    _check_kinds(saved, scheduler.state_dict(), "scheduler")
    for name in set(saved) - set(scheduler.state_dict()):  # another version's, or a method
        if hasattr(scheduler, name):
            raise ValueError(f"scheduler.{name} is none of its numbers")


def progress(saved: Mapping[str, Any]) -> Progress:
    """Where the run was.

    Raises:
        ValueError: if that is no place in a run.
    """
    _check_kinds(saved, asdict(Progress()), "progress")
    return Progress(**saved)


def _check_kinds(saved: Mapping[str, Any], own: Mapping[str, Any], group: str) -> None:
    """Where both have a name: numbers stand for numbers (but NaN), lists for lists."""
    for name, value in saved.items():
        known = own.get(name)
        if known is None or value is None or isinstance(known, Tensor):
            continue
        kinds = next(
            (k for k in ((int, float), (list, tuple)) if isinstance(known, k)), type(known)
        )
        if not isinstance(value, kinds) or (isinstance(value, float) and math.isnan(value)):
            raise ValueError(f"{group}.{name} is {shown(value)}")
