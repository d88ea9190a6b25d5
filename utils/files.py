"""Writing files so that they are either complete or absent."""

import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from zipfile import ZipFile

import numpy as np

from utils.errors import ConfigError
from utils.terminal import one_line

PARTIAL = ".partial"  # ends the name of a file that is being written
MAX_RECORD = 500_000_000  # bytes of a record of text: a long run's metrics.jsonl is the largest
MAX_RATIO = 100  # of an .npz file's arrays to the file, whose figures pack to a half or so
STALE = 3600.0  # seconds without a byte, after which nobody is writing such a file any more
NO_ROOM = "make room on that disk, and repeat the command"
REMEDIES = {
    errno.ENOENT: "its folder was removed or renamed meanwhile: repeat the command",
    errno.ELOOP: "it is a symbolic link, which is not followed: remove it",
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EFBIG: NO_ROOM,
}


class HashingWriter:
    """Writes to a file and hashes what it writes."""

    def __init__(self, file: BinaryIO):
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write to the file and update the hash."""
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        """Flush the file."""
        self.file.flush()


def verified_write(path: Path, write: Callable[[HashingWriter], object]) -> str:
    """Write a file, flush it to the disk and read it back; returns its SHA-256.

    Raises:
        OSError: if it cannot be written, or reads back differently; it is then removed.
    """
    try:
        with _open_synced(path) as file:
            hashing = HashingWriter(file)
            write(hashing)
        with open(path, "rb") as file:
            if hasattr(os, "posix_fadvise"):  # otherwise the page cache would answer
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        digest = hashing.sha256.hexdigest()
        if sha256(path) != digest:
            raise OSError(f"{path} was not written as it should be: the disk may be failing.")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return digest


@contextmanager
def _open_synced(path: Path) -> Iterator[BinaryIO]:
    """A new file that is flushed to the disk when its block ends without an error.

    It is an error if there is something of this name: a link would not be followed.
    """
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """A file's SHA-256 in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write beside `path`, flush to the disk, then rename: a reader never sees half a file.

    Raises:
        OSError: one sentence with the file and the remedy; what was at `path` is still there.
    """
    partial = partial_path(path)
    with explained(path):
        try:
            with _open_synced(partial) as file:
                write(file)
            replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    remove_partials(path.parent, f"{path.name}.", STALE)
    return path


def copy_file(source: Path, path: Path) -> Path:
    """Copy a file as `atomic_write` writes one."""
    with open(source, "rb") as original:
        return atomic_write(path, lambda file: shutil.copyfileobj(original, file))


def link_file(source: Path, path: Path) -> Path:
    """A second name for a file that is only ever replaced; a copy where that can't be had."""
    partial = partial_path(path)
    make_folder(path.parent)
    try:
        os.link(source, partial)
    except OSError:  # another disk, or one without hard links
        return copy_file(source, path)
    os.replace(partial, path)
    partial.unlink(missing_ok=True)  # where both were the same file, replacing does nothing
    return path


def partial_path(path: Path) -> Path:
    """A name beside `path` that nobody can foresee, for what is to be renamed to it."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")


def remove_partials(folder: Path, prefix: str = "", idle: float = -math.inf) -> None:
    """Remove what killed processes left in a folder, where nothing was written for `idle` s."""
    for partial in folder.glob(f"*{PARTIAL}"):
        if partial.name.startswith(prefix):
            with suppress(OSError):  # another process may have been faster
                if time.time() - partial.lstat().st_mtime >= idle:
                    partial.unlink()


def make_folder(folder: Path) -> None:
    """Create a folder and those above it, where they are missing.

    Raises:
        OSError: one sentence with the folder and the remedy.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """For the block that writes `path`.

    Raises:
        OSError: in place of the system's own, one sentence with the file and the remedy.
    """
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno, "make that possible, and repeat the command")
        reason = error.strerror or str(error)
        raise OSError(f"{path} could not be written ({reason}): {remedy}.") from error


def no_follow(path: str, flags: int) -> int:
    """As the `opener` of `open`: a symbolic link in the file's place is an error."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def replace(source: Path, path: Path) -> None:
    """Rename a file over another, durably: after a power cut one of the two is there."""
    os.replace(source, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_digest(path: Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    return sha256(path)[:16]


def write_json(path: Path, content: dict) -> Path:
    """Write a JSON file; its folder is created if missing."""
    make_folder(path.parent)
    text = json.dumps(content, indent=1) + "\n"
    return atomic_write(path, lambda file: file.write(text.encode()))


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a record, whoever wrote it; errors: as for `open`.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is a pipe or a device, larger than any record, or no UTF-8.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_RECORD:
        raise ValueError(f"{path} is a pipe or a device, or larger than any record of a run")
    return path.read_text(encoding="utf-8", errors=errors)


def read_json(path: Path, remedy: str) -> dict:
    """The content of a JSON file that holds a mapping.

    Raises:
        FileNotFoundError: if it is not there.
        ConfigError: if it does not, because it was cut short or is another file; says the remedy.
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a whole JSON file ({error}): {remedy}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__} instead of a record: {remedy}.")
    return content


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which take no more memory than such figures can.

    Raises:
        ValueError: if it is missing, damaged, or unpacks to far more than its size.
    """
    try:
        with ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_RATIO * path.stat().st_size:
            raise ValueError("it unpacks to far more than its size")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # a damaged file can make a reader raise anything
        raise ValueError(one_line(error)) from error


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write a compressed .npz file; its folder is created if missing."""
    make_folder(path.parent)
    return atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def write_scores(folder: Path, stem: str, record: dict, per_image: dict[str, np.ndarray]) -> Path:
    """Write per-image values as stem.npz, then the record of their averages as stem.json."""
    write_arrays(folder / f"{stem}.npz", per_image)
    return write_json(folder / f"{stem}.json", record)
