"""Getting a data set's files onto the disk: one place for what can go wrong on the way."""

import hashlib
import http.client
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

Read = TypeVar("Read")
CHUNK = 1 << 20
tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # nothing may climb out
TIMEOUT = 30  # seconds that a source may be silent
TRIES = 5  # of a source that breaks off; each goes on where the last one ended


@dataclass(frozen=True)
class Remote:
    """A file to fetch: its place under dataset.root, its sources, and the MD5 published for it."""

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
    """Where the data set is not `present`: fetch and verify its files, then `unpack`.

    get(url, path) is what fetches one.

    Raises:
        ValueError: if it is missing and may not, or cannot, be downloaded; it says which file, with
            which checksum, belongs where.
    """
    if present():
        return
    folder = Path(root).absolute()
    if not download:
        raise ValueError(
            f"{name} is not in {folder} and dataset.download=false: set dataset.root to a folder "
            f"that holds it, or put {_listed(files)} into {folder}."
        )
    for file in files:
        obtain(name, folder, file, get or download_url)
    try:
        unpack()
    except (OSError, RuntimeError, tarfile.TarError) as error:
        raise ValueError(
            f"{name}: its files in {folder} could not be unpacked ({_short(error)}): make room, or "
            "set dataset.root to a folder that holds it."
        ) from error


def obtain(name: str, folder: Path, file: Remote, get: Callable[[str, Path], object]) -> None:
    """The file at its place, verified: what is there, else from the first source that has it.

    What has arrived is kept in <file>.part, and a next try goes on from there.

    Raises:
        ValueError: if no source has it, or what is there, or comes, has another checksum.
    """
    path, reasons = folder / file.path, []
    if path.exists():
        check_md5(path, file.md5)
        return
    part = path.with_name(f"{path.name}.part")
    by_hand = f"put {_listed([file])} into {folder}, or set dataset.root to a folder that has it"
    for url in file.urls:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            get(url, part)
            break
        except (OSError, http.client.HTTPException) as error:
            reasons.append(f"{url}: {_short(error)}")
    else:
        raise ValueError(
            f"{name} is not in {folder} and {path.name} could not be downloaded "
            f"({'; '.join(reasons)}): {by_hand}."
        )
    if not part.exists():
        raise ValueError(f"{name}: nothing came for {path.name}: {by_hand}.")
    found = md5(part)
    if file.md5 not in (None, found):
        part.unlink()
        raise ValueError(
            f"{name}: what {url} sent for {path.name} has MD5 {found}, expected {file.md5}: "
            f"{by_hand}."
        )
    part.rename(path)


def download_url(url: str, part: Path) -> None:
    """Append to `part` what it lacks of the file at url, going on where a connection ends early."""
    for left in reversed(range(TRIES)):
        there = part.stat().st_size if part.exists() else 0
        request = urllib.request.Request(url, headers={"User-Agent": "dct-ladder-vae"})
        if there:
            request.add_header("Range", f"bytes={there}-")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                if response.status != 206:  # it sends the whole
                    there = 0
                length = response.headers.get("Content-Length")
                whole = there + int(length) if length else None
                with (
                    open(part, "ab" if there else "wb") as file,
                    tqdm(
                        desc=part.stem,
                        initial=there,
                        total=whole,
                        unit="B",
                        unit_scale=True,
                        disable=None,
                    ) as bar,
                ):
                    while chunk := response.read(CHUNK):
                        file.write(chunk)
                        bar.update(len(chunk))
            if whole is None or part.stat().st_size == whole:
                return
            failure: Exception = OSError(f"it ended after {part.stat().st_size} of {whole} bytes")
        except urllib.error.HTTPError as error:
            if error.code != 416:  # asked for what is beyond its end: what is here is not of it
                raise
            part.unlink()
            failure = error
        except (TimeoutError, ConnectionError, http.client.IncompleteRead) as error:
            failure = error
        if not left:
            raise failure


def read(folder: Path, md5s: Mapping[str, str], reader: Callable[[], Read]) -> Read:
    """reader(), which is torchvision's and verifies these files; what it refuses is named.

    Raises:
        ValueError: with both checksums of the file that is damaged.
    """
    try:
        return reader()
    except RuntimeError:  # "not found or corrupted"
        for name, expected in md5s.items():
            check_md5(folder / name, expected)
        raise


def check_md5(path: Path, expected: str | None) -> None:
    """Raise ValueError with both checksums if the file is not the published one."""
    found = md5(path)
    if expected not in (None, found):
        raise ValueError(
            f"{path} is damaged or not the published file (MD5 {found}, expected {expected}): "
            "delete it and run again, or put a good copy there."
        )


def md5(path: Path) -> str:
    """Of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _listed(files: Sequence[Remote]) -> str:
    return ", ".join(f.path + (f" (MD5 {f.md5})" if f.md5 else "") for f in files)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
