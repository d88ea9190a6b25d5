"""A CUDA graph's behaviour without a GPU: what ran once runs again without Python.

`capture` stands in for utils.processes.graphs.capture. It records every operation with its tensors,
and repeats these on the same tensors: a number that Python put in stays what it was, and a tensor
from outside is read where it was. Numbers read by the host can't be recorded.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default}
READ = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


def storages(value) -> set[int]:
    """Where the tensors in a structure have their numbers."""
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


class Recording(TorchDispatchMode):
    """Operations as they run; `outside` are the storages that were read and not made within."""

    def __init__(self):
        super().__init__()
        self.calls, self.made, self.outside = [], set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_read(func, args):
            raise RuntimeError(f"{func}: operation not permitted when stream is capturing")
        given = storages((args, kwargs))
        self.outside |= given - self.made
        result = func(*args, **kwargs)
        self.made |= storages(result) - given
        self.calls.append((func, args, kwargs, result))  # kept, so that no storage is used twice
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """All again: each result goes to where it was."""
        for func, args, kwargs, result in self.calls:
            anew = tree_leaves(func(*args, **kwargs))
            for old, new in zip(tree_leaves(result), anew, strict=True):
                if isinstance(old, torch.Tensor) and storages(old) != storages(new):
                    old.copy_(new)


def _is_read(func, args: tuple) -> bool:
    """Whether the host needs numbers from the device; of indices those of a mask alone."""
    if func in INDEXING:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    return not READ.isdisjoint(func.tags)


def capture(action, warm_up, device):
    """As utils.processes.graphs.capture; the action is carried out once more."""
    warm_up()
    recording = Recording()
    with recording:
        action()
    return recording.replay
