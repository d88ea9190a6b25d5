"""Which version of this code is at work."""

import hashlib
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("run_experiment.py", "model/**/*.py", "datasets/**/*.py", "utils/**/*.py")
CONFIGS = ("configs/**/*.yaml",)


@cache
def code_version() -> str | None:
    """The commit, with `-dirty` where files differ from it; None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def source_digest() -> str:
    """The first 16 hex digits of the SHA-256 of all source files, committed or not."""
    sha256 = hashlib.sha256()
    for path in own_files(SOURCES):
        sha256.update(f"{path.relative_to(ROOT)}\n".encode())
        sha256.update(path.read_bytes())
    return sha256.hexdigest()[:16]


def own_files(patterns: Sequence[str] = SOURCES + CONFIGS) -> list[Path]:
    """The project's own files, by their places: the code, and the shipped settings."""
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))
