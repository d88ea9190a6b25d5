"""How much memory training takes, estimated before any is allocated; malloc between steps."""

import ctypes
import sys
from pathlib import Path

import torch

from model.layers import CheckpointedModule
from model.objective import LossModule
from model.scales import layout
from utils.errors import ConfigError
from utils.settings.build import build_model, build_objective
from utils.settings.parts import arguments_of, part_class
from utils.settings.schema import Settings

FLOAT, COPIES = 4, 4  # bytes; of each weight: itself, its gradient, two moments
MIN_MAPS = 4  # feature maps of a scale's channels per latent: fewer than training keeps …
MAX_OVER_MIN = 50  # … and this many times their size is more than it keeps
CGROUP = Path("/sys/fs/cgroup/memory.max")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def disable_malloc_trim() -> None:
    """Keep freed memory in this process instead of returning it to the system (glibc alone).

    Otherwise each step returns its feature maps and faults zeroed pages in again: some 45,000 page
    faults and a tenth of the time of a step of mnist_dct_ladder on two cores.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_THRESHOLD, 2**30)


def check_memory(settings: Settings, device: torch.device, processes: int) -> None:
    """Refuse settings whose training cannot fit into the device's memory, even if all is free.

    Raises:
        ConfigError: naming what takes the memory.
    """
    available = total_memory(device)
    data, train = settings.dataset.data_module, settings.train
    images = -(-data.batch_size // (processes * train.acc_grad))
    weights, activations = memory_lower_bound(settings, images)
    if weights + activations <= available < 4 * weights + MAX_OVER_MIN * activations:
        weights, activations = estimate_memory(settings, images)
    if weights > available:
        model = settings.model
        raise ConfigError(
            f"model.num_ch={model.num_ch} and model.latent_scales={model.latent_scales} make "
            f"weights that train in {_gigabytes(weights)} of memory, but {device} has "
            f"{_gigabytes(available)}: use fewer channels, latents or blocks."
        )
    if weights + activations > available:
        raise ConfigError(
            f"dataset.data_module.batch_size={data.batch_size} takes "
            f"{_gigabytes(activations)} of memory for the {images} images of a micro-batch, "
            f"but {device} has {_gigabytes(available)}: lower it, or raise train.acc_grad or set "
            "train.checkpoint_activations=true, which do not change the result."
        )


def total_memory(device: torch.device) -> int:
    """Bytes of the device's memory: on a CPU, what is installed or this cgroup's limit."""
    import psutil  # not at every start

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    physical = psutil.virtual_memory().total
    limit = CGROUP.read_text().strip() if CGROUP.exists() else "max"
    return min(physical, int(limit)) if limit.isdigit() else physical


def memory_lower_bound(settings: Settings, images: int) -> tuple[float, float]:
    """(weights', activations') bytes that training takes at least, from the sizes alone.

    Cheap: most settings are far from the limit, and need no `estimate_memory`.
    """
    model, dataset = settings.model, settings.dataset
    names = ("latent_scales", "latent_width", "num_ch", "scale_ch_mult", "start_scale_at_x")
    weights, maps = 0.0, 0.0
    for scale in layout(dataset.image_size, *(getattr(model, name) for name in names)):
        hidden = int(scale.channels * model.block_ch_mult)
        nets = scale.num_latents * (1 + (model.decoder.num_blocks_per_scale or 1))
        weights += nets * (18 * hidden**2 + 2 * hidden * scale.channels)
        maps += MIN_MAPS * scale.num_latents * scale.channels * scale.size**2
    weights += _denoiser_parameters(settings)
    maps += model.num_mix * dataset.image_size**2
    return FLOAT * COPIES * weights, FLOAT * images * maps


def estimate_memory(settings: Settings, images: int) -> tuple[float, float]:
    """(weights', activations') bytes of a forward pass in training, without allocating any.

    Runs it on fake tensors, and adds up the storages that autograd keeps for the backward pass.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes seconds to import

    dataset = settings.dataset
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def keep_input(net: CheckpointedModule, inputs: tuple[torch.Tensor]) -> None:
        keep(*inputs)

    with FakeTensorMode():
        model = LossModule(build_model(settings), build_objective(settings)).train()
        if settings.train.checkpoint_activations:
            model.model.recompute(True)
            for net in model.modules():
                if isinstance(net, CheckpointedModule):  # it saves its input, unseen by hooks
                    net.register_forward_pre_hook(keep_input)
        weights = sum(p.nbytes for p in model.parameters())
        owned = {p.untyped_storage()._cdata for p in model.parameters()}
        shape = (images, dataset.channels, dataset.image_size, dataset.image_size)
        x = torch.empty(shape).contiguous(memory_format=torch.channels_last)
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=settings.train.use_amp),
        ):
            result = model(x, torch.empty(images, dtype=torch.int64), 1.0)
        activations = sum(s.nbytes() for key, s in kept.items() if key not in owned)
    del result  # held what was counted
    return float(COPIES * weights), float(activations)


def _denoiser_parameters(settings: Settings) -> int:
    """A lower bound on the parameters of a diffusion prior's net, as its own class gives it."""
    node = settings.plain["model"]["decoder"]["z_L_prior"].get("model")
    if node is None:
        return 0
    part = part_class(node, "model.decoder.z_L_prior.model")
    return part.fewest_parameters(**arguments_of(node)) if part else 0


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
