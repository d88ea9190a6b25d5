"""CUDA graphs: many launches recorded once, repeated by one."""

from collections.abc import Callable
from functools import cache

import torch
import torch.distributed as dist

WARM_UPS, OF_SEVERAL = 3, 11  # DistributedDataParallel times its first ten passes


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that graphs of this device are recorded on: its default one can't be."""
    return torch.cuda.Stream(device)


def warm_ups() -> int:
    """Calls before a training step is captured, in which libraries choose and allocate."""
    return OF_SEVERAL if dist.is_initialized() else WARM_UPS


def capture(
    action: Callable[[], None], warm_up: Callable[[], None], device: torch.device
) -> Callable[[], None]:
    """`action` as a function that repeats what it launched on the device, on the same addresses.

    warm_up() comes before, on the same stream; the action itself is recorded, not carried out.
    Other threads may go on using the device (checkpoints, NCCL's watchdog).

    Raises:
        RuntimeError: where something in it can't be recorded, such as a number read by the host.
    """
    stream = side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        warm_up()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        action()
    return graph.replay
