"""The code of a run as an artifact of W&B: this project's own files, without secrets."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from utils.version import ROOT, own_files

ARTIFACT = "source"  # the same code is one version of it, of whichever run
TIMEOUT = 600  # seconds
KEY_GIVEN = re.compile(r"api_key[\"']?\s*[:=](?!\s*(null|~|''|\"\")?\s*([#,}].*)?$)", re.MULTILINE)


def log_code(run: Any) -> None:
    """Upload the code with which a run is made; offline it is kept for later.

    run: the client's.
    """
    with tempfile.TemporaryDirectory(prefix="code-") as folder:
        for path in safe_files():
            copy = Path(folder, path.relative_to(ROOT))
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        artifact = run.log_code(folder, ARTIFACT, lambda path: True, lambda path: False)
    if not run.offline:
        artifact.wait(timeout=TIMEOUT)


def safe_files() -> list[Path]:
    """The project's own files but for links and those that hold a key."""
    return [path for path in own_files() if not path.is_symlink() and not _holds_key(path)]


def _holds_key(path: Path) -> bool:
    """Whether a file has the account's key in it, or settings that give one."""
    text = path.read_text(encoding="utf-8", errors="replace")
    key = os.environ.get("WANDB_API_KEY")
    return bool(key and key in text) or (path.suffix == ".yaml" and bool(KEY_GIVEN.search(text)))
