"""Sums over the processes, gradients averaged, and what all of them agree on.

With one process every call here is the identity.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.processes.launch import Processes


def total(values: Tensor) -> Tensor:
    """The sum over processes, where the values were."""
    if not dist.is_initialized():
        return values
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    summed = values.to(device, copy=True)
    dist.all_reduce(summed)
    return summed.to(values.device)


def by_image(ids: list[Tensor], rows: list[Tensor], images: int) -> Tensor:
    """Rows (B, …) of the images ids (B,) of every process, in the images' order: (images, …)."""
    gathered = torch.zeros(images, *rows[0].shape[1:], dtype=rows[0].dtype)
    for places, values in zip(ids, rows, strict=True):
        gathered[places] = values
    return total(gathered)


def agree(*flags: bool) -> list[bool]:
    """For each flag, whether it is up on any process: all of them get the same answers."""
    if not dist.is_initialized():
        return list(flags)
    return [count > 0 for count in total(torch.tensor(flags, dtype=torch.float32)).tolist()]


def wrap(module: nn.Module, device: torch.device, passes: int = 1) -> nn.Module:
    """The module under DistributedDataParallel where there are several processes.

    The loss must be computed by calling what is returned: past it, gradients are never averaged.
    passes: backward passes per step; more than one, of which the last alone communicates, are
    against the rules of a static graph.
    """
    if not dist.is_initialized():
        return module
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        module,
        ids,
        gradient_as_bucket_view=True,
        static_graph=passes == 1,
        # LadderVAE.after_optimizer_step and average_statistics keep them the same
        broadcast_buffers=False,
    )


@torch.no_grad()
def average_statistics(module: nn.Module) -> None:
    """The running means and variances of batch norms, which each process has of its own images."""
    if not dist.is_initialized():
        return
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for statistic in (norm.running_mean, norm.running_var):
                statistic.copy_(total(statistic) / dist.get_world_size())


def differing(module: nn.Module) -> str | None:
    """The first weight or buffer that is not bit for bit the same on all processes."""
    if not dist.is_initialized():
        return None
    state = module.state_dict()
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    sums = torch.stack([_bits(tensor) for tensor in state.values()]).to(device)
    highest, lowest = sums.clone(), sums
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    differ = (highest != lowest).tolist()
    return next((name for name, differs in zip(state, differ, strict=True) if differs), None)


def _bits(tensor: Tensor) -> Tensor:
    """A number made of all bits of a tensor and their places: scalar int64."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().contiguous().flatten().view(kinds[tensor.element_size()]).long()
    places = torch.arange(len(bits), device=bits.device)
    return (bits * (2 * places + 1)).sum()  # modulo 2^64


def no_sync(module: nn.Module, more: bool) -> AbstractContextManager:
    """Without communication while `more` backward passes of the same step will follow."""
    if more and isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def main_first(processes: Processes, action: Callable) -> object:
    """`action()` on the main process, then on the others (for downloads into a shared folder)."""
    result = action() if processes.is_main else None
    if dist.is_initialized():
        dist.barrier()
    return result if processes.is_main else action()
