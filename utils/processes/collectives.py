"""Collective operations: sums over the processes, averaged gradients, agreement on flags.

With one process every function is the identity.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.errors import ConfigError
from utils.processes import graphs
from utils.processes.launch import Processes
from utils.processes.peers import PeerFailed


def total(values: Tensor) -> Tensor:
    """The sum over all processes, on the device of `values`."""
    if not dist.is_initialized():
        return values
    summed = values.to(_communicated(values.device), copy=True)
    dist.all_reduce(summed)
    return summed.to(values.device)


def mean(values: Tensor) -> Tensor:
    """The mean over all processes, on the device of `values`."""
    return total(values) / dist.get_world_size() if dist.is_initialized() else values


def from_main(value: object) -> object:
    """What the main process passes, on all of them: anything that JSON can hold."""
    if not dist.is_initialized():
        return value
    data = json.dumps(value).encode() if dist.get_rank() == 0 else b""
    size = int(total(torch.tensor(len(data))))
    buffer = torch.tensor(list(data) or [0] * size, dtype=torch.uint8)
    dist.broadcast(buffer, 0)
    return json.loads(bytes(buffer.tolist()))


def check_same(facts: dict[str, object]) -> None:
    """Check that all processes have the same facts, which JSON can hold. Collective.

    Raises:
        ConfigError: on those where one differs from the main process's: which, and how.
        PeerFailed: on the others.
    """
    if not dist.is_initialized():
        return
    own, main = json.loads(json.dumps(facts)), from_main(facts)
    names = [*main, *(name for name in own if name not in main)]
    differing = next((name for name in names if own.get(name) != main.get(name)), None)
    [anywhere] = agree(differing is not None)
    if differing is not None:
        here, there = (json.dumps(facts.get(differing)) for facts in (own, main))
        raise ConfigError(
            f"{differing} is {here} in process {dist.get_rank()} but {there} in process 0: start "
            "all processes with the same command, code and data."
        )
    if anywhere:
        raise PeerFailed


def by_image(ids: list[Tensor], rows: list[Tensor], images: int) -> Tensor:
    """Gather rows (B, …) of the images `ids` (B,) from every process, in order: (images, …)."""
    gathered = torch.zeros(images, *rows[0].shape[1:], dtype=rows[0].dtype)
    for indices, values in zip(ids, rows, strict=True):
        gathered[indices] = values
    return total(gathered)


def agree(*flags: bool) -> list[bool]:
    """For each flag, whether any process has set it: the same answer on all of them."""
    return agree_and_average(flags, ())[0]


def agree_and_average(
    flags: Sequence[bool], values: Sequence[float]
) -> tuple[list[bool], list[float]]:
    """`agree` on the flags, and every value's mean over the processes, in one operation."""
    if not dist.is_initialized():
        return list(flags), list(values)
    means = mean(torch.tensor([*flags, *values], dtype=torch.float64)).tolist()
    return [share > 0 for share in means[: len(flags)]], means[len(flags) :]


def several() -> bool:
    """Whether several processes are joined."""
    return dist.is_initialized()


def wrap(
    module: nn.Module, device: torch.device, micro_batches: int = 1, capture: bool = False
) -> nn.Module:
    """The module, wrapped in DistributedDataParallel where there are several processes.

    The loss must be computed by calling the wrapper; otherwise gradients are never averaged.
    micro_batches: backward passes per step; with more than one only the last communicates, which
    a static graph does not allow. capture: as part of a CUDA graph, on whose stream it then must
    be made.
    """
    if not dist.is_initialized():
        return module
    on_gpu = device.type == "cuda"
    stream = graphs.side_stream(device) if on_gpu and capture else None
    with torch.cuda.stream(stream):
        return nn.parallel.DistributedDataParallel(
            module,
            [device.index] if on_gpu else None,
            gradient_as_bucket_view=True,
            static_graph=micro_batches == 1,
            # LadderVAE.after_optimizer_step and average_statistics keep them the same
            broadcast_buffers=False,
        )


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """Average the running statistics of batch norms, which each process has of its own images."""
    if not dist.is_initialized():
        return
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for statistic in (norm.running_mean, norm.running_var):
                statistic.copy_(mean(statistic))


def differing(module: nn.Module) -> str | None:
    """The name of the first weight or buffer that is not bit for bit equal on all processes."""
    if not dist.is_initialized():
        return None
    state = module.state_dict()
    sums = torch.stack([_bits(tensor) for tensor in state.values()])
    sums = sums.to(_communicated(sums.device))
    highest, lowest = sums.clone(), sums
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    differ = (highest != lowest).tolist()
    return next((name for name, differs in zip(state, differ, strict=True) if differs), None)


def _bits(tensor: Tensor) -> Tensor:
    """A checksum of all bits of a tensor and their positions: scalar int64."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().flatten().view(kinds[tensor.element_size()]).long()
    positions = torch.arange(len(bits), device=bits.device)
    return (bits * (2 * positions + 1)).sum()  # modulo 2^64


def no_sync(module: nn.Module, wanted: bool) -> AbstractContextManager:
    """No averaging of gradients while `wanted`: until the last backward pass of a step."""
    if wanted and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def main_first(processes: Processes, action: Callable) -> object:
    """Run `action` on the main process, then on the others (downloads into a shared folder)."""
    result = action() if processes.is_main else None
    total(torch.zeros(()))  # a barrier that keeps no GPU busy
    return result if processes.is_main else action()


def _communicated(device: torch.device) -> torch.device:
    """Where a tensor of this device is communicated: there, or on the CPU (see launch.backend)."""
    return device if device.type == "cuda" else torch.device("cpu")
