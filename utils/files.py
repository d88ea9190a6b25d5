"""Files that are either whole or not there."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Write beside `path`, flush to the disk, then rename: a reader never sees half a file."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return path


def file_digest(path: Path) -> str:
    """Sixteen hex digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_json(path: Path, content: dict) -> Path:
    """A JSON file; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    return atomic_write(path, lambda file: file.write(text.encode()))


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """A compressed .npz file; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write(path, lambda file: np.savez_compressed(file, **arrays))


def write_scores(folder: Path, stem: str, record: dict, per_image: dict[str, np.ndarray]) -> Path:
    """Every image's figures as stem.npz, then the record that averages them as stem.json."""
    write_arrays(folder / f"{stem}.npz", per_image)
    return write_json(folder / f"{stem}.json", record)
