"""The device that a process computes on, and its half-precision type."""

import torch

from utils.processes.launch import Processes


def pick_device(wanted: str, processes: Processes) -> torch.device:
    """The device that train.device means for this process.

    Raises:
        ValueError: if there is no such device, or a node has more processes than GPUs.
    """
    if wanted == "auto":
        available = torch.accelerator.is_available()
        wanted = torch.accelerator.current_accelerator().type if available else "cpu"
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise ValueError("train.device=mps is not available here: use auto or cpu.")
    if not wanted.startswith("cuda"):
        return torch.device(wanted)
    count = torch.cuda.device_count()
    index = int(wanted.partition(":")[2] or processes.local_rank)
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
