"""What each setting may hold, a line per key; configs/ has the defaults and explains them."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from model.context import CONTEXTS
from model.estimators import ESTIMATORS
from model.layers import ACTIVATIONS
from model.likelihoods import LIKELIHOODS
from model.schedules import SCHEDULES

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # one component of a path, W&B's too
SECRETS = ("wandb.api_key",)  # in no message


@dataclass(frozen=True)
class Rule:
    """accepts(value) and what to say where it doesn't; free: does not determine the result."""

    accepts: Callable[[Any], bool]
    wanted: str
    free: bool = False


def check(key: str, value: Any) -> str | None:
    """The sentence about a wrong value, or None."""
    rule = RULES[key]
    shown = "…" if key in SECRETS else repr(value)
    return None if rule.accepts(value) else f"{key}={shown} is not valid: use {rule.wanted}."


def whole(low: int, high: float = math.inf, free: bool = False) -> Rule:
    """A whole number in [low, high]."""

    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Rule(accepts, f"a whole number {_range(low, high)}", free)


def number(
    low: float = -math.inf, high: float = math.inf, above: bool = False, free: bool = False
) -> Rule:
    """A finite number in [low, high], or in (low, high] with `above`."""

    def accepts(value: Any) -> bool:
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        return (
            real and math.isfinite(value) and low <= value <= high and not (above and value == low)
        )

    wanted = (
        f"a number over {low}" if above and high == math.inf else f"a number {_range(low, high)}"
    )
    return Rule(accepts, wanted.rstrip(), free)


def _range(low: float, high: float) -> str:
    if high == math.inf:
        return "" if low == -math.inf else f"of {low} or more"
    return f"from {low} to {high}"


def one_of(*choices: Any, free: bool = False) -> Rule:
    """One of the choices."""

    def accepts(value: Any) -> bool:
        return any(value is c or (isinstance(value, str) and value == c) for c in choices)

    return Rule(accepts, "one of " + ", ".join(str(c).lower() for c in choices), free)


def flag(free: bool = False) -> Rule:
    """true or false."""
    return one_of(True, False, free=free)


def text(wanted: str = "a text", free: bool = False) -> Rule:
    """A non-empty text."""
    return Rule(lambda value: isinstance(value, str) and value != "", wanted, free)


def maybe(rule: Rule) -> Rule:
    """null, or what the rule accepts."""
    return Rule(lambda v: v is None or rule.accepts(v), f"{rule.wanted}, or null", rule.free)


def every(rule: Rule, length: int | None = None, least: int = 1) -> Rule:
    """A list (of `length`, else of `least` or more) of what the rule accepts."""

    def accepts(value: Any) -> bool:
        fits = isinstance(value, list) and (len(value) == length if length else len(value) >= least)
        return fits and all(rule.accepts(v) for v in value)

    return Rule(accepts, f"a list of {length or f'{least} or more'}, each {rule.wanted}", rule.free)


def _device(value: Any) -> bool:
    kind, _, index = value.partition(":") if isinstance(value, str) else ("", "", "")
    return value in ("auto", "cpu", "cuda", "mps") or (kind == "cuda" and index.isdigit())


def _period(value: Any) -> bool:
    steps = isinstance(value, str) and re.fullmatch(r"[1-9]\d* steps?", value)
    return bool(steps) or number(0).accepts(value)


TARGET = text("the dotted path of a class or function")
RULES: dict[str, Rule] = {
    "name": Rule(
        lambda value: isinstance(value, str) and bool(SAFE_NAME.fullmatch(value)),
        "experiment=… or a name of your own: up to 100 letters (a-z), digits, dots, hyphens and "
        "underscores, the first a letter or digit",
    ),
    "checkpoint": maybe(text("a path of a checkpoint", free=True)),
    "run": maybe(text("the folder of a run", free=True)),
    "runs": every(text("a folder or a file", free=True), least=0),
    "runs_dir": text("a folder", free=True),
    # data
    "dataset._target_": TARGET,
    "dataset.name": Rule(
        lambda v: isinstance(v, str) and v.isprintable() and v not in ("", "..") and "/" not in v,
        "a text without slashes and control characters",
    ),
    "dataset.root": text("a folder", free=True),
    "dataset.download": flag(free=True),
    "dataset.image_size": whole(2, 1024),
    "dataset.channels": one_of(1, 3),
    "dataset.levels": whole(2, 256),
    "dataset.standardisation": every(number(above=False), 2),
    "dataset.horizontal_flip": flag(),
    "dataset.likelihood": one_of(*LIKELIHOODS, free=True),  # what model.likelihood is by default
    "dataset.size": whole(2, 1024),
    "dataset.shape": every(whole(1, 1024), 3),
    "dataset.validation_share": number(0, 0.9),
    "dataset.test_share": number(0, 0.9),
    "dataset.test_arguments": Rule(
        lambda value: value in ({}, None), "null, or arguments as in {train: false}"
    ),
    "dataset.memory_limit": number(0, free=True),
    "dataset.cache": text("a folder", free=True),
    "dataset.data_module.batch_size": whole(1),
    "dataset.data_module.test_batch_size": whole(1, free=True),
    # model
    "model.latent_scales": every(whole(0, 1000)),
    "model.latent_width": every(whole(0, 4096)),
    "model.ctx_size": whole(1, 1024),
    "model.num_ch": whole(1, 16384),
    "model.scale_ch_mult": number(0, 64, above=True),
    "model.block_ch_mult": number(0, 64, above=True),
    "model.activation": one_of(*ACTIVATIONS),
    "model.weight_norm": flag(),
    "model.batch_norm": flag(),
    "model.start_scale_at_x": flag(),
    "model.likelihood": one_of(*LIKELIHOODS),
    "model.num_mix": whole(1, 1000),
    "model.beta_start": number(0),
    "model.beta_end": number(0),
    "model.warmup": whole(0),
    "model.free_bits_thr": number(0),
    "model.is_k": whole(1),
    "model.is_k_prior": whole(1),
    "model.encoder._target_": TARGET,
    "model.encoder._partial_": one_of(True),
    "model.encoder.num_init_blocks": whole(0, 1000),
    "model.encoder.num_blocks_per_scale": whole(1, 1000),
    "model.decoder._target_": TARGET,
    "model.decoder._partial_": one_of(True),
    "model.decoder.num_blocks_per_scale": whole(1, 1000),
    "model.decoder.num_postprocess_blocks": whole(0, 1000),
    "model.decoder.var_mode": one_of("log", "softplus"),
    "model.decoder.softplus_beta": number(0, 100, above=True),
    "model.decoder.disconnect": flag(),
    "model.decoder.condition_on_last": flag(),
    "model.decoder.ctx_type": one_of(*CONTEXTS),
    "model.decoder.ctx_posterior_var": one_of("delta", "fixed", "train", "conditional"),
    "model.decoder.ctx_posterior_var_init": number(-10, 10),
    "model.decoder.z_L_bits": whole(1, 10),
    "model.decoder.z_L_prior._target_": TARGET,
    "model.decoder.z_L_prior._partial_": one_of(True),
    "model.decoder.z_L_prior.T": whole(2, 10_000),
    "model.decoder.z_L_prior.beta_schedule": one_of(*SCHEDULES),
    "model.decoder.z_L_prior.t_sample": one_of("uniform", "loss_aware"),
    "model.decoder.z_L_prior.parametrization": one_of("x", "x_var", "eps"),
    "model.decoder.z_L_prior.model._target_": TARGET,
    "model.decoder.z_L_prior.model._partial_": one_of(True),
    "model.decoder.z_L_prior.model.model_channels": whole(2, 16384),
    "model.decoder.z_L_prior.model.num_res_blocks": whole(1, 100),
    "model.decoder.z_L_prior.model.channel_mult": every(whole(1, 64)),
    "model.decoder.z_L_prior.model.num_heads": whole(1, 1024),
    "model.decoder.z_L_prior.model.dropout": Rule(
        number(0, 0.99).accepts, "a number from 0 to 0.99"
    ),
    # training
    "train.seed": whole(0, 2**31 - 1),
    "train.resume_id": maybe(text("the W&B id of a run", free=True)),
    "train.init_from": maybe(text("a checkpoint")),
    "train.threads": Rule(
        lambda value: value == "auto" or whole(1, 1024).accepts(value),
        "auto, or a whole number from 1 to 1024",
        free=True,
    ),
    "train.device": Rule(_device, "auto, cpu, cuda, cuda:1 or mps", free=True),
    "train.ddp": one_of("auto", True, False, free=True),
    "train.max_epochs": whole(1),
    "train.early_stopping_epochs": maybe(whole(1)),
    "train.eval_freq": whole(1, free=True),
    "train.checkpoint_every": Rule(
        _period, "a number of minutes, or as in '500 steps' of steps", free=True
    ),
    "train.log_every": whole(1, free=True),
    "train.keep_every": maybe(whole(1, free=True)),
    "train.grace_seconds": number(0, 86_400, free=True),
    "train.on_save_error": one_of("stop", "continue", free=True),
    "train.use_amp": flag(),
    "train.checkpoint_activations": flag(free=True),
    "train.ema_rate": Rule(number(0, 0.999999).accepts, "a number from 0 to under 1"),
    "train.acc_grad": whole(1),
    "train.grad_clip": number(0),
    "train.grad_skip_thr": number(0),
    "train.max_skipped_steps": whole(1),
    "train.on_nonfinite": one_of("stop", "skip", free=True),  # a run that stopped may go on
    "train.compute_fid": flag(free=True),
    "train.fid_weights": maybe(text("a file", free=True)),
    "train.optimizer._target_": TARGET,
    "train.optimizer._partial_": one_of(True),
    "train.optimizer.lr": number(0, 10, above=True),
    "train.optimizer.weight_decay": number(0),
    "train.optimizer.betas": every(Rule(number(0, 0.999999).accepts, "from 0 to under 1"), 2),
    "train.optimizer.eps": number(0),
    "train.scheduler": Rule(lambda value: value in ({}, None), "train/scheduler=cosine, … or none"),
    "train.scheduler._target_": TARGET,
    "train.scheduler._partial_": one_of(True),
    "train.scheduler.T_max": whole(1),
    "train.scheduler.eta_min": number(0),
    "train.scheduler.base_lr": number(0),
    "train.scheduler.max_lr": number(0),
    "train.scheduler.step_size_up": whole(1),
    "train.scheduler.mode": one_of("triangular", "triangular2", "exp_range"),
    "train.scheduler.cycle_momentum": flag(),
    "train.scheduler.factor": number(0, 0.999999, above=True),
    "train.scheduler.patience": whole(0),
    "train.scheduler.min_lr": number(0),
    # record
    "wandb.setup.entity": maybe(text()),
    "wandb.setup.project": text(),
    "wandb.setup.mode": one_of("auto", "online", "offline", "disabled"),
    "wandb.api_key": maybe(text()),
    "wandb.group": maybe(text()),
    "wandb.job_type": maybe(text()),
    "wandb.tags": every(text("a word"), least=0),
    "wandb.notes": maybe(text()),
    "wandb.watch": flag(),
    "wandb.tensorboard": flag(),
    # tasks
    "task.name": one_of(
        "train", "test", "report", "compare", "sample", "reconstruct", "sync", "check_data"
    ),
    "task.force": flag(),
    "task.estimators": every(one_of(*ESTIMATORS), least=0),
    "task.split": one_of("train", "validation", "test"),
    "task.num_images": maybe(whole(1)),
    "task.report": flag(),
    "task.mi_images": whole(2, 10_000),
    "task.temperature": number(0, 10),
    "task.output": maybe(text("a folder")),
}
