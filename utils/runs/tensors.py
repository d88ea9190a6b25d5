"""Tensors out of a file: read without executing anything, and compared before memory is taken.

torch.load would make whatever a file asks for: entries that decompress to gigabytes, empty arrays
of any size, views that repeat a few bytes. Here a file's tensors take no more than the file.
"""

import pickle
import pickletools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO
from zipfile import ZIP_STORED, ZipFile

import torch
from torch import Tensor

from utils.terminal import printable

ZIPPED = b"PK\x03\x04"
LEGACY_PICKLES = 5  # that a file written before torch 1.6 begins with
STORAGES = ("Float", "Double", "Half", "BFloat16", "ComplexFloat", "ComplexDouble", "Bool")
STORAGES += ("Long", "Int", "Short", "Char", "Byte")
# What pickles of tensors and plain containers call. torch.load allows more, some of which makes
# arrays of a size that the pickle states (bytearray, tensor classes, sparse and meta tensors), or
# doubles its argument with every call (_codecs.encode, of bytes).
CALLED = {"collections OrderedDict", "collections Counter", "torch Size"}
CALLED |= {"torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"}
CALLED |= {"torch._utils _rebuild_parameter", "torch device", "builtins set", "__builtin__ set"}
CALLED |= {f"{module} {kind}Storage" for module in ("torch", "torch.cuda") for kind in STORAGES}
CALLED |= {f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


# Those of them that copy what they are given, which may be the same long list every time.
COPYING = {"collections OrderedDict", "collections Counter", "torch Size"}
COPYING |= {"builtins set", "__builtin__ set"}
MAX_COPIED = 16_000_000  # bytes of a pickle, as many times as it names one of these


def load_tensors(path: Path) -> object:
    """What torch.load gives, its tensors being the file's own pages where it is an archive.

    Raises:
        pickle.UnpicklingError: where it calls for more than tensors and plain containers.
        Exception: of any kind where it is damaged; ValueError where it would take more memory than
            its size.
    """
    with open(path, "rb") as file:
        # PyTorch cannot open a name that is not UTF-8.
        name = str(path) if str(path).isprintable() else f"/dev/fd/{file.fileno()}"
        size, zipped = path.stat().st_size, file.read(len(ZIPPED)) == ZIPPED
        file.seek(0)
        calls = _calls_of_archive(name, size) if zipped else _calls(file, LEGACY_PICKLES)
        if unknown := calls - CALLED:
            raise pickle.UnpicklingError(f"it calls {sorted(unknown)[0]}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's, about files that are not its own
            content = torch.load(name, map_location="cpu", weights_only=True, mmap=zipped)
    storages = [tensor.untyped_storage() for _, tensor in tensors_in(content)]
    if sum({s.data_ptr(): s.nbytes() for s in storages}.values()) > size:
        raise ValueError("it states tensors that it does not hold")
    return content


def _calls_of_archive(name: str, size: int) -> set[str]:
    """The calls of an archive's pickle, which is not read before the archive's sizes are."""
    with ZipFile(name) as archive:
        compressed = any(entry.compress_type != ZIP_STORED for entry in archive.infolist())
    reader = torch._C.PyTorchFileReader(name)  # as torch.load reads it
    if compressed or sum(map(reader.get_record_size, reader.get_all_records())) > size:
        raise ValueError("it is compressed, or unpacks to more than its size")
    return _calls(reader.get_record("data.pkl"), 1)


def _calls(pickled: bytes | BinaryIO, count: int) -> set[str]:
    """`module name` of every global in so many pickles, one after the other.

    Raises:
        ValueError: if what copies its arguments is called so often that it may fill the memory.
    """
    found = set()
    for _ in range(count):
        pushed, begin, end = [], None, 0
        for name, end in _pushed(pickletools.genops(pickled)):
            begin = end if begin is None else begin
            pushed.append(name)
        # A call without arguments, as for every tensor's hooks, copies nothing.
        calls = zip(pushed, [*pushed[1:], ""], [*pushed[2:], "", ""], strict=False)
        copies = sum(
            name in COPYING and after != ["EMPTY_TUPLE", "REDUCE"] for name, *after in calls
        )
        if copies * (end - (begin or 0)) > MAX_COPIED:
            raise ValueError("it copies what it holds many times over")
        found |= {name for name in pushed if " " in name}
    return found


def _pushed(opcodes: Iterable[tuple]) -> Iterator[tuple[str, int]]:
    """Every opcode's name and place; a global's own name where one is put on the stack.

    Left out are those that only remember what is on top of the stack.
    """
    memo, top = {}, ""
    for opcode, argument, place in opcodes:
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = top
            continue
        top = argument if opcode.name == "GLOBAL" else ""
        if opcode.name in ("BINGET", "LONG_BINGET"):
            top = memo.get(argument, "")
        yield top or opcode.name, place


def tensors_in(content: object) -> list[tuple[str, Tensor]]:
    """(dotted name, tensor) of every tensor in nested containers, each of which is visited once."""
    found, visited, waiting = [], set(), [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            found.append((name, value))
        elif isinstance(value, (dict, list, tuple)) and id(value) not in visited:
            visited.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(_below(name, key), inner) for key, inner in items]
    return found


def _below(name: str, key: object) -> str:
    """A dotted name's end: however deep a file nests, it stays short."""
    shown = printable(f"{key:.100}") if isinstance(key, str) else type(key).__name__
    return f"{name}.{shown}".lstrip(".")[-200:]


def named_tensors(content: dict, key: str, source: str) -> dict[str, Tensor]:
    """content[key], which is to hold tensors by name.

    Raises:
        ValueError: if it is missing or something else.
    """
    named = content.get(key)
    if not isinstance(named, dict) or not named:
        raise ValueError(f"{source} is damaged (it has no weights in {key}): get a good copy.")
    for name, value in named.items():
        if not (isinstance(name, str) and isinstance(value, Tensor)):
            raise ValueError(
                f"{source} is damaged (its {key} holds a {type(value).__name__} as "
                f"{_below('', name)!r}): get a good copy."
            )
    return named


def check_separate(named: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Refuse tensors that repeat their own elements or share memory with one another.

    Raises:
        ValueError: naming the first.
    """
    named = [(name, tensor) for name, tensor in named if tensor.numel()]
    for name, tensor in named:
        if not _is_dense(tensor):
            raise ValueError(
                f"{source} is not to be trusted: its {name} of shape {tuple(tensor.shape)} repeats "
                "the same elements; get a good copy."
            )
    ranges = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, name) for name, t in named)
    for (_, end, first), (begin, _, second) in pairwise(ranges):
        if begin < end:
            raise ValueError(
                f"{source} is not to be trusted: its {first} and {second} share their memory; get "
                "a good copy."
            )


def _is_dense(tensor: Tensor) -> bool:
    """Whether it covers its part of the storage once, in whatever order of its dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def check_finite(named: Iterable[tuple[str, Tensor]], source: str) -> None:
    """Refuse weights that a model cannot be used with.

    Raises:
        ValueError: naming the first tensor with such.
    """
    for name, tensor in named:
        if not tensor.isfinite().all():
            raise ValueError(
                f"{source} holds weights that are NaN or infinite (in {name}): name a checkpoint "
                "from before that."
            )


def check_weights(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, remedy: str
) -> None:
    """Whether they are those of a model with this state dict, which may be on the meta device.

    Raises:
        ValueError: one sentence, if names, shapes or types differ (it says the remedy), or values
            are not finite.
    """
    check_shapes(weights, wanted, source, remedy)
    for name, tensor in weights.items():
        if tensor.dtype != wanted[name].dtype:
            found, expected = (str(t.dtype).removeprefix("torch.") for t in (tensor, wanted[name]))
            raise ValueError(f"{source} has {name} in {found}, not {expected}: get a good copy.")
    check_separate(weights.items(), source)
    check_finite(weights.items(), source)


def check_shapes(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, remedy: str
) -> None:
    """Whether names and shapes are those.

    Raises:
        ValueError: one sentence with the first that is not, and the remedy.
    """
    if difference := _difference(weights, wanted):
        raise ValueError(
            f"{source} holds another architecture than its settings describe ({difference}): "
            f"{remedy}."
        )


def _difference(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """The first name or shape that differs, in words."""
    for name, tensor in wanted.items():
        if name not in weights:
            return f"it lacks {name}"
        found, expected = tuple(weights[name].shape), tuple(tensor.shape)
        if found != expected:
            return f"its {name} has the shape {found}, not {expected}"
    more = next((name for name in weights if name not in wanted), None)
    return more and f"it has {_below('', more)} too"
