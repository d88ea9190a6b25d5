"""A GPU that isn't there: tensors that say cuda:0, compute on the CPU, and note who waits for them.

    with gpu() as waits:
        …  # model.to("cuda:0") and what else a GPU is asked for
    assert not waits  # what made the host wait for the device, in order

An operation on tensors of both devices raises, as on a GPU. Noted as waits are numbers and shapes
read from the device, and copies to and from it, except those from pinned memory with non_blocking.
Kernels, streams, autocast's casts and NCCL are not shown. This leans on private functions of torch:
`HOLDS` says whether it was tried with the installed version.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FIRST, LAST = (2, 11), (2, 14)  # versions of torch that this was tried with
HOLDS = FIRST <= tuple(map(int, torch.__version__.split(".")[:2])) <= LAST
CUDA = torch.device("cuda", 0)

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
READ = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}  # `item`, `nonzero`, …

_waits: list[str] = []


class OnGPU(torch.Tensor):
    """A tensor on cuda:0: PyTorch's engine sees a meta tensor, and `held` has the numbers."""

    held: torch.Tensor
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGPU":
        like = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        self = torch.Tensor._make_subclass(cls, like)
        self.held = held
        return self

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As of any tensor; for "cuda" without a number PyTorch would ask the driver."""
        return super().to(*(CUDA if arg == "cuda" else arg for arg in args), **kwargs)

    def tolist(self) -> Any:
        """One copy to the host."""
        _waits.append("tolist")
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Makes tensors on the device that they are asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return _compute(func, args, kwargs) if "device" in kwargs else func(*args, **kwargs)


@contextlib.contextmanager
def gpu(bfloat16: bool = True) -> Iterator[list[str]]:
    """Within it there is a cuda:0; yields the waits so far. bfloat16: whether the GPU has it."""
    attention = aten._scaled_dot_product_flash_attention_for_cpu
    replaced = {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.mem_get_info": lambda device=None: (2**33, 2**34),
        "torch.cuda.is_bf16_supported": lambda including_emulation=True: bfloat16,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.__future__.get_overwrite_module_params_on_conversion": lambda: True,
        "torch.nn.functional.scaled_dot_product_attention": lambda q, k, v: attention(q, k, v)[0],
    }
    _waits.clear()
    with contextlib.ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch(name, function))
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.enter_context(_Factories())
        yield _waits


def _compute(func, args: tuple, kwargs: dict) -> Any:
    """The operation on the CPU; what it returns is where it would be on a machine with a GPU."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
    to = kwargs.get("device")  # asked for by C++ as one of our tensors', it is meta
    there = bool(ours) if to is None else torch.device(to).type != "cpu"
    if _waits_for(func, args, kwargs, there):
        _waits.append(str(func))
    if ours and func not in COPIES:
        _check_devices(func, args, kwargs)
    pinned = kwargs.get("pin_memory")
    if to is not None:
        kwargs = {**kwargs, "device": "cpu", "pin_memory": False}
    mine = {id(tensor.held): tensor for tensor in ours}
    result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if func is aten.copy_.default:
        return args[0]
    if pinned:
        result.pinned = True

    def placed(value: Any) -> Any:
        if id(value) in mine:  # changed in place
            return mine[id(value)]
        return OnGPU(value) if there and isinstance(value, torch.Tensor) else value

    return tree_map(placed, result)


def _waits_for(func, args: tuple, kwargs: dict, there: bool) -> bool:
    """Whether the host waits for the device in this operation; there: its result is on the GPU."""
    if func in COPIES:
        source = args[1] if func is aten.copy_.default else args[0]
        target = isinstance(args[0], OnGPU) if func is aten.copy_.default else there
        asynchronous = kwargs.get("non_blocking") or (len(args) > 2 and args[2])
        return isinstance(source, OnGPU) != target and not (
            target and asynchronous and getattr(source, "pinned", False)
        )
    if not any(isinstance(leaf, OnGPU) for leaf in tree_leaves((args, kwargs))):
        return False
    if (
        func in INDEXING
    ):  # a mask's count is read; an index on the CPU, as a list becomes, is copied
        indices = [index for index in args[1] if index is not None]
        return any(i.dtype == torch.bool or not isinstance(i, OnGPU) for i in indices)
    return not READ.isdisjoint(func.tags)


def _check_devices(func, args: tuple, kwargs: dict) -> None:
    """Raise where a CPU tensor, other than a number or an index, takes part."""
    if func in INDEXING and isinstance(args[0], OnGPU):
        args = (args[0], *args[2:])
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, torch.Tensor) and not isinstance(tensor, OnGPU) and tensor.dim():
            raise RuntimeError(f"{func}: tensors on cuda:0 and cpu")


def _held(value: Any) -> Any:
    return getattr(value, "held", value)
