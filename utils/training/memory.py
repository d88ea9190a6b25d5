"""How much memory training takes, known before any is taken; and keeping it between steps."""

import ctypes
import os
import sys
from pathlib import Path

import torch

from model.layers import CheckpointedModule
from model.objective import LossModule
from model.scales import layout
from utils.errors import ConfigError
from utils.settings.build import build_model, build_objective

FLOAT, COPIES = 4, 4  # bytes; of each weight: itself, its gradient, two moments
FEWEST = 4  # maps of a scale's channels that training keeps per latent: fewer than it does …
MAPS = 50  # … and so many times as much is more than it does
CGROUP = Path("/sys/fs/cgroup/memory.max")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed() -> None:
    """Let this process keep what it frees, up to its highest, where the C library is glibc.

    Else each step hands its maps back to the system and is given zeroed pages again: some 45,000
    faults and a tenth of a step of mnist_dct_ladder on two cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)


def check_memory(settings: dict, device: torch.device, processes: int) -> None:
    """Refuse what cannot fit the device, whatever else is on it.

    Raises:
        ConfigError: naming what takes the memory.
    """
    there = total(device)
    data, train = settings["dataset"]["data_module"], settings["train"]
    images = -(-data["batch_size"] // (processes * train["acc_grad"]))
    weights, activations = least(settings, images)
    if weights + activations <= there < 4 * weights + MAPS * activations:
        weights, activations = needed(settings, images)
    if weights > there:
        model = settings["model"]
        raise ConfigError(
            f"model.num_ch={model['num_ch']} and model.latent_scales={model['latent_scales']} make "
            f"weights that train in {_shown(weights)} of memory, but {device} has {_shown(there)}: "
            "use fewer channels, latents or blocks."
        )
    if weights + activations > there:
        raise ConfigError(
            f"dataset.data_module.batch_size={data['batch_size']} takes {_shown(activations)} of "
            f"memory for the {images} images of a pass, but {device} has {_shown(there)}: lower "
            "it, or raise train.acc_grad or set train.checkpoint_activations=true, which do not "
            "change the result."
        )


def total(device: torch.device) -> int:
    """Bytes of memory that the device has in all."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical


def least(settings: dict, images: int) -> tuple[float, float]:
    """(weights', activations') bytes that training takes at least, by the sizes alone."""
    model, dataset = settings["model"], settings["dataset"]
    names = ("latent_scales", "latent_width", "num_ch", "scale_ch_mult", "start_scale_at_x")
    weights, maps = 0.0, 0.0
    for scale in layout(dataset["image_size"], *(model[name] for name in names)):
        hidden = int(scale.channels * model["block_ch_mult"])
        nets = scale.num_latents * (1 + model["decoder"].get("num_blocks_per_scale", 1))
        weights += nets * (18 * hidden**2 + 2 * hidden * scale.channels)
        maps += FEWEST * scale.num_latents * scale.channels * scale.size**2
    unet = model["decoder"].get("z_L_prior", {}).get("model", {})
    if "model_channels" in unet:
        widest = unet["model_channels"] * max(unet.get("channel_mult", [1]))
        weights += 18 * widest**2 * unet.get("num_res_blocks", 1)
    maps += model["num_mix"] * dataset["image_size"] ** 2
    return FLOAT * COPIES * weights, FLOAT * images * maps


def needed(settings: dict, images: int) -> tuple[float, float]:
    """(weights', activations') bytes of a training pass over so many images, without taking any."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # seconds: only where it is close

    dataset = settings["dataset"]
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def keep_input(net: CheckpointedModule, inputs: tuple[torch.Tensor]) -> None:
        keep(*inputs)

    with FakeTensorMode():
        model = LossModule(build_model(settings), build_objective(settings)).train()
        if settings["train"]["checkpoint_activations"]:
            model.model.recompute(True)
            for net in model.modules():
                if isinstance(net, CheckpointedModule):  # it saves its input, unseen by hooks
                    net.register_forward_pre_hook(keep_input)
        weights = sum(p.nbytes for p in model.parameters())
        owned = {p.untyped_storage()._cdata for p in model.parameters()}
        shape = (images, dataset["channels"], dataset["image_size"], dataset["image_size"])
        x = torch.empty(shape).contiguous(memory_format=torch.channels_last)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=settings["train"]["use_amp"]),
        ):
            result = model(x, torch.empty(images, dtype=torch.int64), 1.0)
        activations = sum(s.nbytes() for key, s in kept.items() if key not in owned)
    del result  # held what was counted
    return float(COPIES * weights), float(activations)


def _shown(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
