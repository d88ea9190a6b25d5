"""Which device a process computes on, and in which half precision."""

import torch

from utils.processes.launch import Processes


def pick_device(wanted: str, processes: Processes) -> torch.device:
    """train.device as a device of this process.

    Raises:
        ValueError: if the device is not there, or a node has more processes than GPUs.
    """
    if wanted == "auto":
        found = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        )
        wanted = found.type if found else "cpu"
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
    """The half precision of a device: bfloat16 where it has it, float16 otherwise."""
    if device.type == "mps":
        return torch.float16
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16
