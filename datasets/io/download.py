"""Downloading a data set's files, resumed and verified; every failure names the remedy."""

import errno
import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Content = TypeVar("Content")
CHUNK = 1 << 20  # bytes
TIMEOUT = 30  # seconds without data from a server
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TRIES = 5  # of an interrupted download; each resumes where the last one ended
# No member of an archive may be written outside the folder that it is unpacked into.
tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)


@dataclass(frozen=True)
class Remote:
    """A file to download: its path under dataset.root, its URLs, and its published MD5."""

    path: str
    urls: tuple[str, ...]
    md5: str | None = None


def fetch(
    name: str,
    root: str,
    download: bool,
    present: Callable[[], bool],
    files: Sequence[Remote],
    unpack: Callable[[], object] = lambda: None,
    get: "Callable[[str, Path], object] | None" = None,
) -> None:
    """Download and verify the files of a data set that is not `present`, then `unpack` them.

    get(url, path) downloads one file.

    Raises:
        ValueError: if it is missing and may not, or cannot, be downloaded; the message names the
            files, their checksums and where to put them.
    """
    if present():
        return
    folder = Path(root).absolute()
    if not download:
        raise ValueError(
            f"{name} is not in {folder} and dataset.download=false: set dataset.root to a folder "
            f"that holds it, or put {_listed(files)} into {folder}."
        )
    from filelock import FileLock  # not at every start

    _make_writable(folder, folder)
    with FileLock(folder / f".{name}.lock"):  # another command may be fetching it
        if not present():
            _fetch(name, folder, files, unpack, get or download_url)


def _fetch(
    name: str,
    folder: Path,
    files: Sequence[Remote],
    unpack: Callable[[], object],
    get: Callable[[str, Path], object],
) -> None:
    for file in files:
        obtain(name, folder, file, get)
    try:
        unpack()
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise ValueError(
            f"{name}: its files in {folder} could not be unpacked ({_short(error)}): make room, or "
            "set dataset.root to a folder that holds it."
        ) from error


def obtain(name: str, folder: Path, file: Remote, get: Callable[[str, Path], object]) -> None:
    """Put a verified file into the folder, unless it is there: from the first URL that has it.

    An incomplete download is kept as <file>.part and resumed by the next attempt.

    Raises:
        ValueError: if no URL has it, or its checksum is wrong.
    """
    path, reasons = folder / file.path, []
    if path.exists():
        check_md5(path, file.md5)
        return
    part = path.with_name(f"{path.name}.part")
    by_hand = f"put {_listed([file])} into {folder}, or set dataset.root to a folder that has it"
    _make_writable(path.parent, folder)
    if part.is_symlink():  # not ours: nothing is written to where it leads
        part.unlink()
    for url in file.urls:
        try:
            get(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            if getattr(error, "errno", None) in NO_ROOM:
                raise ValueError(
                    f"dataset.root={folder} has no room for {path.name} ({error.strerror}): make "
                    "some, and the download goes on where it broke off."
                ) from error
            reasons.append(f"{url}: {_short(error)}")
    else:
        raise ValueError(
            f"{name} is not in {folder} and {path.name} could not be downloaded "
            f"({'; '.join(reasons)}): {by_hand}."
        )
    if not part.exists():
        raise ValueError(f"{name}: nothing came for {path.name}: {by_hand}.")
    received = md5(part)
    if file.md5 not in (None, received):
        part.unlink()
        raise ValueError(
            f"{name}: what {url} sent for {path.name} has MD5 {received}, expected {file.md5}: "
            f"{by_hand}."
        )
    part.rename(path)


def _make_writable(folder: Path, root: Path) -> None:
    """Create a folder in dataset.root.

    Raises:
        ValueError: if nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise ValueError(
            f"dataset.root={root} does not hold the data set and cannot be written to "
            f"({error.strerror}): allow it, or set dataset.root to another folder."
        ) from error


def download_url(url: str, part: Path) -> None:
    """Append to `part` what it lacks of the file at url, resuming where a connection breaks off."""
    for retries_left in reversed(range(TRIES)):
        try:
            size = _resume(url, part)
            if size is None or part.stat().st_size == size:
                return
            failure: Exception = OSError(f"it ended after {part.stat().st_size} of {size} bytes")
        except urllib.error.HTTPError as error:
            if error.code != 416:  # range not satisfiable: `part` belongs to a longer file
                raise
            part.unlink()
            failure = error
        except (TimeoutError, ConnectionError, http.client.IncompleteRead) as error:
            failure = error
        if not retries_left:
            raise failure


def _resume(url: str, part: Path) -> int | None:
    """One request for the rest of a file; the file's size, where the server names it."""
    from tqdm import tqdm  # not at every start

    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "dct-ladder-vae"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # no partial content: the server sends the whole file
            start = 0
        length = response.headers.get("Content-Length")
        size = start + int(length) if length else None
        bar = tqdm(
            desc=part.stem, initial=start, total=size, unit="B", unit_scale=True, disable=None
        )
        with open(part, "ab" if start else "wb") as file, bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return size


def read(folder: Path, md5s: Mapping[str, str], reader: Callable[[], Content]) -> Content:
    """Call torchvision's reader, which verifies these files, and name the one that it rejects.

    Raises:
        ValueError: with both checksums of the damaged file.
    """
    try:
        return reader()
    except RuntimeError:  # "not found or corrupted"
        for name, expected in md5s.items():
            check_md5(folder / name, expected)
        raise


def check_md5(path: Path, expected: str | None) -> None:
    """Raise ValueError with both checksums if the file is not the published one."""
    actual = md5(path)
    if expected not in (None, actual):
        raise ValueError(
            f"{path} is damaged or not the published file (MD5 {actual}, expected {expected}): "
            "delete it and run again, or put a good copy there."
        )


def md5(path: Path) -> str:
    """The MD5 of a file in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _listed(files: Sequence[Remote]) -> str:
    return ", ".join(f.path + (f" (MD5 {f.md5})" if f.md5 else "") for f in files)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
