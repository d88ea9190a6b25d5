"""From checked settings to the objects that they describe: model, objective, optimiser."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Adam, Optimizer
from torch.overrides import TorchFunctionMode

from model.context import CONTEXTS, Context
from model.ladder_vae import LadderVAE
from model.objective import BalancedNelbo, BetaNelbo, BetaSchedule, Objective
from utils.errors import ConfigError
from utils.settings.parts import build
from utils.settings.schema import Settings
from utils.settings.schema.types import Part
from utils.settings.trust import targets, targets_in_configs

NOT_OF_THE_MODEL = (  # keys under model that its constructor does not take
    "beta_start",
    "beta_end",
    "warmup",
    "beta_cycles",
    "beta_ramp",
    "kl_balance",
    "free_bits_thr",
    "objective",
    "is_k",
    "is_k_per_context",
    "is_k_paths",
)


def build_model(settings: Settings) -> LadderVAE:
    """The untrained model."""
    dataset = settings.dataset
    parts = {k: v for k, v in settings.plain["model"].items() if k not in NOT_OF_THE_MODEL}
    for name in ("encoder", "decoder"):
        parts[name] = build(parts[name], f"model.{name}")
    return LadderVAE(
        image_shape=(dataset.channels, dataset.image_size, dataset.image_size),
        standardisation=dataset.standardisation,
        levels=dataset.levels,
        **parts,
    )


class WeightNormShapes(TorchFunctionMode):
    """Weight norm on the meta device, where PyTorch's own takes seconds to import and to run."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """The shapes alone of its two functions; anything else as it is."""
        if function is torch.norm_except_dim and args[1:] == (2, 0):
            weight = args[0]
            return weight.new_empty((len(weight), *[1] * (weight.dim() - 1)))
        if function is torch._weight_norm:
            return torch.empty_like(args[0])
        return function(*args, **(kwargs or {}))


def build_without_numbers(settings: Settings) -> LadderVAE:
    """The model as names, shapes and types, which take no memory however large they are.

    For settings out of a file, before what they describe is allocated.
    """
    try:
        with torch.device("meta"), WeightNormShapes():
            return build_model(settings)
    except ConfigError:
        named = (target for _, target in targets(settings.plain["model"]))
        if targets_in_configs().issuperset(named):
            raise
        return build_model(settings)  # a part of one's own may need numbers


def build_context(settings: Settings) -> Context | None:
    """The model's context, not fitted; None for a plain ladder."""
    model, dataset = settings.model, settings.dataset
    if model.ctx_size is None:
        return None
    own = settings.plain["model"]["decoder"].get("context")
    make = build(own, "model.decoder.context") if own else CONTEXTS[model.decoder.ctx_type]
    return make(dataset.channels, dataset.image_size, model.ctx_size)


def build_objective(settings: Settings) -> Objective:
    """The training loss: the project's own, or the class that model.objective names."""
    model, plain = settings.model, settings.plain["model"]
    if model.objective:
        return build(plain["objective"], "model.objective")(
            beta_start=model.beta_start,
            beta_end=model.beta_end,
            warmup=model.warmup,
            free_bits_thr=model.free_bits_thr,
        )
    nelbo = BetaNelbo(beta_schedule(settings), model.free_bits_thr)
    if not model.kl_balance:
        return nelbo
    return BalancedNelbo(nelbo, sum(model.latent_scales) + (model.ctx_size is not None))


def beta_schedule(settings: Settings) -> BetaSchedule:
    """The weight of the KL in each epoch.

    Raises:
        ValueError: where its keys don't go together.
    """
    model = settings.model
    return BetaSchedule(
        model.beta_start,
        model.beta_end,
        model.warmup,
        model.beta_cycles,
        model.beta_ramp,
        settings.train.max_epochs,
    )


def build_optimizer(settings: Settings, model: LadderVAE) -> tuple[Optimizer, Any]:
    """The optimiser of all of the model's parameters, and its schedule (None: constant).

    Adam and AdamW step in one kernel: 3 ms instead of 12 for mnist_dct_ladder on two CPU cores.
    """
    train = settings.plain["train"]
    optimizer = build(train["optimizer"], "train.optimizer")(model.parameters())
    if isinstance(optimizer, Adam):
        for group in optimizer.param_groups:
            group["fused"] = True
    if settings.train.scheduler is None:
        return optimizer, None
    return optimizer, build(train["scheduler"], "train.scheduler")(optimizer)


def build_own(settings: Settings, group: str) -> dict[str, Any]:
    """A user's own classes of a kind: `estimators`, `metrics` or `trackers`, by name."""
    named: dict[str, Part] = getattr(settings, group)
    return {name: build(settings.plain[group][name], f"{group}.{name}") for name in named}
