"""Where a NaN or an infinity comes from, by name."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def bad_weights(model: nn.Module) -> str | None:
    """The first parameter or buffer that is not finite; the device is asked once for all."""
    state = {n: t for n, t in model.state_dict().items() if t.is_floating_point()}
    fine = torch.stack([tensor.isfinite().all() for tensor in state.values()]).tolist()
    return next((name for name, good in zip(state, fine, strict=True) if not good), None)


def bad_gradient(model: nn.Module) -> str | None:
    """Of the parameters whose gradient is not finite the last, nearest to the loss."""
    named = reversed(list(model.named_parameters()))
    return next((n for n, p in named if p.grad is not None and not _finite(p.grad)), None)


def bad_output(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """The first module, in order of computation, whose output is not finite when `forward` runs."""
    found, handles = [], []

    def watch(name: str) -> Callable:
        def look(module: nn.Module, inputs: tuple, output: Any) -> None:
            if not found and not all(map(_finite, _tensors(output))):
                found.append(name)

        return look

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(watch(name or type(model).__name__)))
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


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
