"""CelebA (Liu et al. 2015; non-commercial research only): 202,599 faces, in its own three splits.

Read from img_align_celeba.zip without unpacking it, or from the folder of its 178×218 images. The
square from (15, 40) to (163, 188), that of Larsen et al. (2016), is scaled to size×size.
"""

import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torchvision.datasets import CelebA

from datasets.io.decode import Decoder, Unusable
from datasets.io.download import Remote, check_md5, fetch
from datasets.io.source import ImageSource
from datasets.splits import SPLITS

CROP = (15, 40, 163, 188)
ARCHIVE, FOLDER = "img_align_celeba.zip", "img_align_celeba"
PARTITION = "list_eval_partition.txt"  # one line per image: its name, its split's number


def load(root: str, size: int, download: bool = True) -> ImageSource:
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
    return ImageSource(
        source=str(source.absolute()),
        identity=repr((CROP, sources[PARTITION][1], status.st_size, status.st_mtime_ns)),
        shape=(3, size, size),
        parts=names,
        read=lambda part, index: read(names[part][index]),
    )


def _reader(source: Path, decoder: Decoder) -> Callable[[str], np.ndarray]:
    """A function from an image's name to the image; a missing image is an error."""
    threads = threading.local()  # an open archive per thread: a shared one would serialise them

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
    """Download from Google Drive, where the authors publish the data set."""
    try:
        import gdown  # an optional dependency, needed for this download only
    except ImportError as error:
        raise OSError("gdown is missing: pip install -e '.[celeba]'") from error
    try:
        gdown.download(id=file_id, output=str(path), resume=True, quiet=not sys.stderr.isatty())
    except Exception as error:  # its own, and those of the libraries it uses
        raise OSError(str(error)) from error
