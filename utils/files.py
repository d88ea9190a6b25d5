"""Files that are either whole or not there."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.errors import ConfigError


class Hashing:
    """Writes on to a file and digests what it was given."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """To the file and the digest."""
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """The file's."""
        self.file.flush()


def verified_write(path: Path, write: Callable[[Hashing], object]) -> str:
    """Write a file, flush it to the disk, and read it back from there; its SHA-256.

    Raises:
        OSError: if it cannot be written, or comes back another; it is then removed.
    """
    try:
        with _to_disk(path) as file:
            hashing = Hashing(file)
            write(hashing)
        with open(path, "rb") as file:
            if hasattr(os, "posix_fadvise"):  # else it would be read from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        digest = hashing.sha256.hexdigest()
        if sha256(path) != digest:
            raise OSError(f"{path} was not written as it should be: the disk may be failing.")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return digest


@contextmanager
def _to_disk(path: Path) -> Iterator[BinaryIO]:
    """A new file, flushed to the disk when its block ends well."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """A file's SHA-256 in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write beside `path`, flush to the disk, then rename: a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    with _to_disk(partial) as file:
        write(file)
    replace(partial, path)
    return path


def replace(source: Path, path: Path) -> None:
    """Give a file another's name, on the disk too: a power cut leaves the one or the other."""
    os.replace(source, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_digest(path: Path) -> str:
    """Sixteen hex digits of a file's SHA-256."""
    return sha256(path)[:16]


def write_json(path: Path, content: dict) -> Path:
    """A JSON file; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    return atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: Path, remedy: str) -> dict:
    """The content of a JSON file that holds a mapping.

    Raises:
        ConfigError: if it does not, because it was cut short or is another file; says the remedy.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a whole JSON file ({error}): {remedy}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__} instead of a record: {remedy}.")
    return content


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A compressed .npz file; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def write_scores(folder: Path, stem: str, record: dict, per_image: dict[str, np.ndarray]) -> Path:
    """Every image's figures as stem.npz, then the record that averages them as stem.json."""
    write_arrays(folder / f"{stem}.npz", per_image)
    return write_json(folder / f"{stem}.json", record)
