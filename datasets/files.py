"""Getting a data set onto the disk: one place for what can go wrong on the way."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Loaded = TypeVar("Loaded")


def fetch(
    name: str, root: str, download: bool, present: Callable[[], bool], get: Callable[[], object]
) -> None:
    """Call `get` (which downloads and verifies) where the data set is not `present`.

    Raises:
        ValueError: if it is missing and may not, or cannot, be downloaded.
    """
    if present():
        return
    folder = Path(root).absolute()
    remedy = f"set dataset.root to a folder that holds it, or copy its files into {folder}"
    if not download:
        raise ValueError(f"{name} is not in {folder} and dataset.download=false: {remedy}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        get()
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{name} is not in {folder} and could not be downloaded ({reason}): {remedy}."
        ) from error


def check_md5(path: Path, expected: str) -> None:
    """Raise ValueError with both checksums if the file is not the published one."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is damaged or not the published file (MD5 {found}, expected {expected}): "
            "delete it and run again, or put a good copy there."
        )
