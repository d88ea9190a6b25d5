"""model: the ladder, its loss, and how its likelihood is estimated."""

from typing import Annotated, Literal

from pydantic import Field

from model.context import CONTEXTS
from model.direct import OUTPUTS
from model.layers import ACTIVATIONS
from model.likelihoods import LIKELIHOODS
from model.posteriors import POSTERIORS
from model.schedules import SCHEDULES
from utils.settings.kinds import FREE
from utils.settings.schema.types import ABSENT, Amount, Count, Group, NonNegative, PartialPart


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
    posterior: Literal[POSTERIORS] = "absolute"
    delta: Annotated[float, Field(gt=0, le=30)] | None = None
    output: Literal[OUTPUTS] = "state"
    tied: bool = False


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
    beta_cycles: Count = 1
    beta_ramp: Annotated[float, Field(gt=0, le=1)] | None = None
    kl_balance: bool = False
    is_k: Count
    is_k_per_context: Annotated[Count, FREE]
    is_k_paths: Annotated[Count, FREE]
    encoder: Encoder
    decoder: Decoder
    ctx_size: Annotated[int, Field(ge=1, le=1024)] = ABSENT
    objective: PartialPart | None = ABSENT  # a class of one's own, given the four of the loss
