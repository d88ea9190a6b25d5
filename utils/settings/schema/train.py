"""train: optimisation, checkpoints, where and how it computes."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from utils.settings.kinds import (
    FREE,
    Wanted,
    accepts,
    is_device,
    is_number_of_threads,
    is_period,
)
from utils.settings.schema.types import (
    ABSENT,
    Amount,
    Count,
    Group,
    NonNegative,
    PartialPart,
    Path,
    Rate,
    Seed,
    Text,
)


class OptimizerSettings(PartialPart):
    """train.optimizer."""

    lr: Annotated[float, Field(gt=0, le=10)] = ABSENT
    weight_decay: NonNegative = ABSENT
    betas: Annotated[list[Rate], Field(min_length=2, max_length=2)] = ABSENT
    eps: NonNegative = ABSENT


class SchedulerSettings(PartialPart):
    """train.scheduler; stepped once per epoch."""

    T_max: Count = ABSENT
    eta_min: NonNegative = ABSENT
    base_lr: NonNegative = ABSENT
    max_lr: NonNegative = ABSENT
    step_size_up: Count = ABSENT
    mode: Literal["triangular", "triangular2", "exp_range"] = ABSENT
    cycle_momentum: bool = ABSENT
    factor: Annotated[float, Field(gt=0, le=0.999999)] = ABSENT
    patience: Amount = ABSENT
    min_lr: NonNegative = ABSENT


class Train(Group):
    """train: optimisation, checkpoints, where and how it computes."""

    seed: Seed
    resume_id: Annotated[Annotated[Text, Wanted("the W&B id of a run")] | None, FREE]
    init_from: Annotated[Text, Wanted("a checkpoint")] | None
    device: Annotated[str, accepts(is_device), Wanted("auto, cpu, cuda, cuda:1 or mps"), FREE]
    threads: Annotated[
        str | int,
        accepts(is_number_of_threads),
        Wanted("auto, or a whole number from 1 to 1024"),
        FREE,
    ]
    ddp: Annotated[Literal["auto", True, False], FREE]
    max_epochs: Count
    extended_from: list[Count] | None
    early_stopping_epochs: Count | None
    eval_freq: Annotated[Count, FREE]
    checkpoint_every: Annotated[
        str | float,
        accepts(is_period),
        Wanted("a number of minutes, or as in '500 steps' of steps"),
        FREE,
    ]
    log_every: Annotated[Count, FREE]
    keep_every: Annotated[Count | None, FREE]
    grace_seconds: Annotated[float, Field(ge=0, le=86_400), FREE]
    stuck_minutes: Annotated[float, Field(gt=0, le=240), FREE]
    on_save_error: Annotated[Literal["stop", "continue"], FREE]
    capture: Annotated[Literal["auto", True, False], FREE]
    compile: Annotated[bool, FREE]
    use_amp: bool
    checkpoint_activations: Annotated[bool, FREE]
    ema_rate: Rate
    acc_grad: Count
    grad_clip: NonNegative
    grad_skip_thr: NonNegative
    max_skipped_steps: Count
    on_nonfinite: Annotated[Literal["stop", "skip"], FREE]  # a run that stopped may go on
    compute_fid: Annotated[bool, FREE]
    fid_weights: Annotated[Path | None, FREE]
    optimizer: OptimizerSettings
    scheduler: Annotated[
        SchedulerSettings | None,
        BeforeValidator(lambda value: None if value == {} else value),
        Wanted("train/scheduler=cosine, … or none"),
    ]
