"""The convolutions of a training step, each alone: what a step could reach if all else were free.

FLOP are two per multiplication, and three times the forward pass's for forward and backward.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.measure import Subject, seconds
from model.noise import Noise

AT_LEAST = 0.2  # seconds that each is timed


@dataclass
class Convolution:
    """A kind of convolution: a module, an input for it, how often a step has it."""

    module: nn.Conv1d | nn.Conv2d
    x: Tensor
    count: int = 0

    def seconds(self) -> float:
        """Median time of its forward and backward pass."""
        gradient = torch.randn_like(self.module(self.x))
        wanted = [t for t in (self.x, *self.module.parameters()) if t.requires_grad]
        return seconds(lambda: torch.autograd.grad(self.module(self.x), wanted, gradient), AT_LEAST)

    def rate(self) -> float:
        """FLOP/s of its forward and backward pass."""
        positions = self.module(self.x)[:, 0].numel()
        return 6.0 * positions * self.module.weight.numel() / self.seconds()


def convolutions(subject: Subject) -> list[Convolution]:
    """Those of a training step by kind, with random inputs that lie in memory as they do there."""
    found: dict[tuple, Convolution] = {}

    def record(module: nn.Module, inputs: tuple[Tensor]) -> None:
        [x] = inputs
        key = (str(module), x.shape, x.stride(), x.requires_grad)
        if key not in found:
            alone = copy.deepcopy(module)
            alone._forward_pre_hooks.clear()
            found[key] = Convolution(alone, torch.randn_like(x).requires_grad_(x.requires_grad))
        found[key].count += 1

    modules = [m for m in subject.model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d))]
    hooks = [module.register_forward_pre_hook(record) for module in modules]
    x = subject.evaluation_batches(subject.batch_size).examples(subject.batch_size)
    subject.model.train()  # in evaluation mode the prior would go through all its steps
    subject.model(x, noise=Noise.keyed(torch.arange(len(x), device=x.device), 0))
    for hook in hooks:
        hook.remove()
    return list(found.values())


def fastest(kinds: list[Convolution]) -> Convolution:
    """The 3×3 convolution of the highest rate: the yardstick of what this machine can do."""
    dense = [k for k in kinds if k.module.kernel_size == (3, 3) and k.module.groups == 1]
    return max(dense, key=Convolution.rate)


def seconds_of_all(kinds: list[Convolution]) -> float:
    """Of all convolutions of a step, forward and backward, with nothing between them."""
    return sum(kind.count * kind.seconds() for kind in kinds)
