"""CelebA (Liu et al. 2015; non-commercial research only): 202,599 faces, in its own three splits.

Read from img_align_celeba.zip as it is, or from the folder of its 178×218 images. The square from
(15, 40) to (163, 188), as of Larsen et al. (2016), is scaled to size×size.
"""

import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torchvision.datasets import CelebA

from datasets.io.cache import Unstored
from datasets.io.decode import Decoder, Unusable
from datasets.io.download import Remote, check_md5, fetch
from datasets.splits import SPLITS

CROP = (15, 40, 163, 188)
ARCHIVE, FOLDER = "img_align_celeba.zip", "img_align_celeba"
PARTITION = "list_eval_partition.txt"  # a name and the number of its split a line


def load(root: str, size: int, download: bool = True) -> Unstored:
    """162,770 + 19,867 + 19,962 images (3, size, size) from root/celeba."""
    folder = Path(root, CelebA.base_folder)
    sources = {name: (file_id, md5) for file_id, md5, name in CelebA.file_list}
    fetch(
        "CelebA",
        root,
        download,
        present=lambda: (
            (folder / PARTITION).is_file()
            and ((folder / ARCHIVE).is_file() or (folder / FOLDER).is_dir())
        ),
        files=[
            Remote(f"{CelebA.base_folder}/{name}", (sources[name][0],), sources[name][1])
            for name in (PARTITION, ARCHIVE)
        ],
        get=_from_drive,
    )
    check_md5(folder / PARTITION, sources[PARTITION][1])
    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    for line in (folder / PARTITION).read_text().splitlines():
        name, split = line.split()
        names[SPLITS[int(split)]].append(name)
    source = folder / (ARCHIVE if (folder / ARCHIVE).is_file() else FOLDER)
    read, status = _reader(source, Decoder(3, size, CROP)), source.stat()
    return Unstored(
        place=str(source.absolute()),
        identity=repr((CROP, sources[PARTITION][1], status.st_size, status.st_mtime_ns)),
        shape=(3, size, size),
        parts=names,
        read=lambda part, index: read(names[part][index]),
    )


def _reader(source: Path, decoder: Decoder) -> Callable[[str], np.ndarray]:
    """From an image's name to the image; of this set none may be missing."""
    threads = threading.local()  # each with an archive of its own: they would wait for each other

    def read(name: str) -> np.ndarray:
        try:
            if source.is_dir():
                return decoder(source / name)
            if not hasattr(threads, "archive"):
                threads.archive = zipfile.ZipFile(source)
            with threads.archive.open(f"{FOLDER}/{name}") as file:
                return decoder(file)
        except (Unusable, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{source} is not whole: {name} is missing or {error}; delete it and run again, or "
                "put a good copy there."
            ) from error

    return read


def _from_drive(file_id: str, path: Path) -> None:
    """From Google Drive, where its authors keep it."""
    try:
        import gdown  # an extra: only where it is fetched
    except ImportError as error:
        raise OSError("gdown is missing: pip install -e '.[celeba]'") from error
    try:
        gdown.download(id=file_id, output=str(path), resume=True, quiet=not sys.stderr.isatty())
    except Exception as error:  # its own, and those of what it is made of
        raise OSError(str(error)) from error
