"""The device that a process computes on, and its half-precision type."""

import torch

from utils.processes.launch import Processes


def pick_device(wanted: str, processes: Processes) -> torch.device:
    """The device that train.device means for this process.

    Of several processes on a node each has the GPU of its local rank, or the one that the launcher
    lets it see.

    Raises:
        ValueError: if there is no such device, a node has more processes than GPUs, or one GPU is
            named for several processes.
    """
    if wanted == "auto":
        available = torch.accelerator.is_available()
        wanted = torch.accelerator.current_accelerator().type if available else "cpu"
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise ValueError("train.device=mps is not available here: use auto or cpu.")
    if not wanted.startswith("cuda"):
        return torch.device(wanted)
    count, named = torch.cuda.device_count(), wanted.partition(":")[2]
    if not count:
        raise ValueError(f"train.device={wanted}: there is no GPU here: use train.device=cpu.")
    if named and processes.world > 1:
        raise ValueError(
            f"train.device={wanted} names one GPU for {processes.world} processes: use "
            "train.device=cuda, with which each has its own, or start one process."
        )
    index = int(named or (0 if count == 1 else processes.local_rank))
    if index >= count:
        raise ValueError(
            f"train.device={wanted} asks for GPU {index} but this node has {count}: start no more "
            "processes per node than GPUs, or use train.device=cpu."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def amp_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device supports it natively, float16 otherwise."""
    if device.type == "mps":
        return torch.float16
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16
