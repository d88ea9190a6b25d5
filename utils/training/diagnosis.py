"""Where a NaN or an infinity comes from, by name."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def explain_nonfinite(
    model: nn.Module, losses: list[float], passes: Iterable[Callable[[], object]]
) -> str:
    """What of a training step is not finite, and the parameter or layer where that begins.

    losses: loss, reconstruction, KL per layer; passes: the forward pass of each micro-batch. The
    gradient is looked for in the parameters.
    """
    loss, reconstruction, *kl = losses
    values = loss_terms(reconstruction, kl)
    weights = bad_weights(model)
    if weights:
        return f"the weights are not finite, first {weights}; {values}"
    if all(map(math.isfinite, losses)):
        gradient = bad_gradient(model)
        return f"the gradient is not finite, nearest the loss in {gradient}; {values}"
    layer = next(filter(None, (bad_output(model, forward) for forward in passes)), None)
    where = f", first in {layer}" if layer else ""
    return f"the loss is {loss}{where}; {values}"


def loss_terms(reconstruction: float, kl: list[float]) -> str:
    """The terms of the bound as a message names them, in nats per image."""
    layers = ", ".join(f"{value:.4g}" for value in kl)
    return f"reconstruction {reconstruction:.4g} nats, KL per layer from the top [{layers}]"


def bad_weights(model: nn.Module) -> str | None:
    """The first parameter or buffer that is not finite, at the cost of one synchronisation."""
    state = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    finite = torch.stack([tensor.isfinite().all() for tensor in state.values()]).tolist()
    return next((name for name, good in zip(state, finite, strict=True) if not good), None)


def bad_gradient(model: nn.Module) -> str | None:
    """The last parameter whose gradient is not finite, which is the nearest to the loss."""
    named = reversed(list(model.named_parameters()))
    return next((n for n, p in named if p.grad is not None and not _finite(p.grad)), None)


def bad_output(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """The first module, in order of computation, whose output is not finite when `forward` runs."""
    names: list[str] = []

    def check(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if not names and not all(map(_finite, _tensors(output))):
                names.append(name)

        return hook

    handles = [
        module.register_forward_hook(check(name or type(model).__name__))
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return names[0] if names else None


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in a module's output, whatever holds them."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        yield from _tensors(vars(value))
