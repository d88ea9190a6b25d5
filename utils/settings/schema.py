"""Every setting: what it may hold, and whether it determines the result; configs/ explains each.

Groups are open only where a `_target_` takes arguments of its own. A key that some choices of a
group lack has no value there (None); given, it must be valid all the same.
"""

from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr

from model.context import CONTEXTS
from model.estimators import ESTIMATORS
from model.layers import ACTIVATIONS
from model.likelihoods import LIKELIHOODS
from model.schedules import SCHEDULES
from utils.settings.kinds import (
    FREE,
    Key,
    Wanted,
    accepts,
    is_device,
    is_number_of_threads,
    is_path_component,
    is_period,
    is_safe_name,
    keys,
)

ABSENT: Any = None  # the default of keys that only some choices have: given, null is not valid

Count = Annotated[int, Field(ge=1)]
Amount = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, le=0.999999), Wanted("a number from 0 to under 1")]
Text = Annotated[str, Field(min_length=1)]
Path = Annotated[Text, Wanted("a folder or a file")]
Target = Annotated[Text, Wanted("the dotted path of a class or function")]


class Group(BaseModel):
    """Settings under one key."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __getitem__(self, key):  # TRANSITIONAL
        found = getattr(self, {"_target_": "target"}.get(key, key))
        return found

    def get(self, key, default=None):  # TRANSITIONAL
        found = getattr(self, key, None)
        return default if found is None else found

    def __contains__(self, key):  # TRANSITIONAL
        return getattr(self, key, None) is not None


class Part(Group):
    """A class or function with its arguments: the keys beside `_target_`."""

    model_config = ConfigDict(extra="allow")

    target: Target = Field(alias="_target_")


class PartialPart(Part):
    """One that is finished later, with what only the program knows."""

    partial: Literal[True] = Field(alias="_partial_")


class DataModule(Group):
    """dataset.data_module: the sizes of batches."""

    batch_size: Count
    test_batch_size: Annotated[Count, FREE]


class Dataset(Part):
    """dataset: where images come from, and what they are."""

    name: Annotated[
        str,
        accepts(is_path_component),
        Wanted("a text without slashes and control characters"),
    ]
    image_size: Annotated[int, Field(ge=2, le=1024)]
    channels: Literal[1, 3]
    levels: Annotated[int, Field(ge=2, le=256)]
    standardisation: Annotated[list[float], Field(min_length=2, max_length=2)]
    horizontal_flip: bool
    data_module: DataModule
    likelihood: Annotated[Literal[tuple(LIKELIHOODS)], FREE] = ABSENT  # model.likelihood's default
    root: Annotated[Path, FREE] = ABSENT
    download: Annotated[bool, FREE] = ABSENT
    size: Annotated[int, Field(ge=2, le=1024)] = ABSENT
    shape: Annotated[
        list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=3, max_length=3)
    ] = ABSENT
    validation_share: Annotated[float, Field(ge=0, le=0.9)] = ABSENT
    test_share: Annotated[float, Field(ge=0, le=0.9)] = ABSENT
    test_arguments: Annotated[
        dict[str, Any] | None, Wanted("null, or arguments as in {train: false}")
    ] = ABSENT
    memory_limit: Annotated[NonNegative, FREE] = ABSENT
    cache: Annotated[Path, FREE] = ABSENT


class Denoiser(PartialPart):
    """model.decoder.z_L_prior.model: the net of a diffusion prior."""

    model_channels: Annotated[int, Field(ge=2, le=16384)] = ABSENT
    num_res_blocks: Annotated[int, Field(ge=1, le=100)] = ABSENT
    channel_mult: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1)] = ABSENT
    num_heads: Annotated[int, Field(ge=1, le=1024)] = ABSENT
    dropout: Annotated[float, Field(ge=0, le=0.99)] = ABSENT


class TopPrior(PartialPart):
    """model.decoder.z_L_prior: the prior of the context or of the plain ladder's top latent."""

    T: Annotated[int, Field(ge=2, le=10_000)] = ABSENT
    beta_schedule: Literal[tuple(SCHEDULES)] = ABSENT
    t_sample: Literal["uniform", "loss_aware"] = ABSENT
    parametrization: Literal["x", "x_var", "eps"] = ABSENT
    model: Denoiser = ABSENT


class Encoder(PartialPart):
    """model.encoder."""

    num_init_blocks: Annotated[int, Field(ge=0, le=1000)] = ABSENT
    num_blocks_per_scale: Annotated[int, Field(ge=1, le=1000)] = ABSENT


class Decoder(PartialPart):
    """model.decoder."""

    z_L_prior: TopPrior
    num_blocks_per_scale: Annotated[int, Field(ge=1, le=1000)] = ABSENT
    num_postprocess_blocks: Annotated[int, Field(ge=0, le=1000)] = ABSENT
    var_mode: Literal["log", "softplus"] = ABSENT
    softplus_beta: Annotated[float, Field(gt=0, le=100)] = ABSENT
    disconnect: bool = ABSENT
    condition_on_last: bool = ABSENT
    ctx_type: Literal[tuple(CONTEXTS)] = ABSENT
    context: PartialPart | None = ABSENT  # a class of one's own in place of ctx_type
    ctx_posterior_var: Literal["delta", "fixed", "train", "conditional"] = ABSENT
    ctx_posterior_var_init: Annotated[float, Field(ge=-10, le=10)] = ABSENT
    z_L_bits: Annotated[int, Field(ge=1, le=10)] = ABSENT


class Model(Group):
    """model: the ladder, its loss, and how its likelihood is estimated."""

    latent_scales: Annotated[list[Annotated[int, Field(ge=0, le=1000)]], Field(min_length=1)]
    latent_width: Annotated[list[Annotated[int, Field(ge=0, le=4096)]], Field(min_length=1)]
    num_ch: Annotated[int, Field(ge=1, le=16384)]
    scale_ch_mult: Annotated[float, Field(gt=0, le=64)]
    block_ch_mult: Annotated[float, Field(gt=0, le=64)]
    activation: Literal[tuple(ACTIVATIONS)]
    weight_norm: bool
    batch_norm: bool
    start_scale_at_x: bool
    likelihood: Literal[tuple(LIKELIHOODS)]
    num_mix: Annotated[int, Field(ge=1, le=1000)]
    beta_start: NonNegative
    beta_end: NonNegative
    warmup: Amount
    free_bits_thr: NonNegative
    is_k: Count
    is_k_prior: Count
    encoder: Encoder
    decoder: Decoder
    ctx_size: Annotated[int, Field(ge=1, le=1024)] = ABSENT
    objective: PartialPart | None = ABSENT  # a class of one's own, given the four of the loss


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

    seed: Annotated[int, Field(ge=0, le=2**31 - 1)]
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
    on_save_error: Annotated[Literal["stop", "continue"], FREE]
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
    tensorboard: bool


Split = Literal["train", "validation", "test"]
Own = Annotated[
    dict[str, Part], Wanted("classes of your own by name, each with its _target_"), FREE
]
NumImages = Count | None
Output = Annotated[Text, Wanted("a folder")] | None
Estimators = list[Annotated[Text, Wanted(f"one of {', '.join(ESTIMATORS)}")]]
InformationImages = Annotated[int, Field(ge=2, le=10_000)]


class TrainTask(Group):
    """task=train."""

    name: Literal["train"]
    force: bool
    estimators: Estimators
    report: bool
    mi_images: InformationImages


class ScoreTask(Group):
    """task=test."""

    name: Literal["test"]
    split: Split
    num_images: NumImages
    estimators: Estimators
    output: Output


class ReportTask(Group):
    """task=report."""

    name: Literal["report"]
    split: Split
    num_images: NumImages
    estimators: Estimators
    mi_images: InformationImages
    output: Output


class CompareTask(Group):
    """task=compare."""

    name: Literal["compare"]
    split: Split
    num_images: NumImages
    estimators: Estimators
    output: Output


class SampleTask(Group):
    """task=sample."""

    name: Literal["sample"]
    num_images: Count
    temperature: Annotated[float, Field(ge=0, le=10)]
    output: Output


class ReconstructTask(Group):
    """task=reconstruct."""

    name: Literal["reconstruct"]
    split: Split
    num_images: Count
    output: Output


class SyncTask(Group):
    """task=sync."""

    name: Literal["sync"]


class CheckDataTask(Group):
    """task=check_data."""

    name: Literal["check_data"]
    output: Output


Task = Union[  # noqa: UP007  a discriminated union is built of these
    TrainTask,
    ScoreTask,
    ReportTask,
    CompareTask,
    SampleTask,
    ReconstructTask,
    SyncTask,
    CheckDataTask,
]
TASKS = {task.model_fields["name"].annotation.__args__[0]: task for task in Task.__args__}


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
    runs_dir: Annotated[Text, Wanted("a folder"), FREE]
    dataset: Dataset
    model: Model
    train: Train
    wandb: Wandb
    task: Annotated[Task, Field(discriminator="name")]
    estimators: Own = {}
    metrics: Own = {}
    trackers: Own = {}

    _plain: dict = PrivateAttr(default_factory=dict)

    @property
    def plain(self) -> dict:
        """As plain containers, key for key as they were composed: what is written down."""
        return self._plain


KEYS: dict[str, Key] = {**dict(keys(Settings)), "task.name": Key(Literal[tuple(TASKS)])}
