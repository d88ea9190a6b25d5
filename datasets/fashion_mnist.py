"""Fashion-MNIST (Xiao et al. 2017; MIT licence): 60,000 + 10,000 clothes of 28×28, as MNIST's.

Sources and checksums are torchvision's. Those are checksums of the archives, so an unpacked file
is checked by the sizes in its header and, where its archive is still beside it, by its CRC-32.
"""

import math
import struct
import zlib
from pathlib import Path

from torchvision.datasets import MNIST, FashionMNIST

from datasets.io.download import check_md5
from datasets.mnist import fetch_idx, read_idx
from datasets.splits import ImageSplits

VALIDATION = 5_000


def load(root: str, download: bool = True) -> ImageSplits:
    """55,000 + 5,000 + 10,000 images (1, 28, 28) from root/FashionMNIST/raw."""
    return load_archived("Fashion-MNIST", FashionMNIST, root, download, VALIDATION)


def load_archived(
    name: str, source: type[MNIST], root: str, download: bool, validation: int
) -> ImageSplits:
    """One of torchvision's data sets in the IDX format, of which the archives have checksums."""
    fetch_idx(name, source, root, download)
    for archive, md5 in source.resources:
        _check(Path(root, source.__name__, "raw", archive), md5)
    return read_idx(Path(root, source.__name__, "raw"), tuple(source.classes), validation)


def _check(archive: Path, md5: str) -> None:
    """Raise ValueError where the file unpacked from an archive is incomplete or damaged."""
    path = archive.with_suffix("")
    content, remedy = path.read_bytes(), "delete it and run again, or put a good copy there."
    dims = 3 if "idx3" in path.name else 1
    header = struct.Struct(f">{1 + dims}i")  # a magic number, then the sizes
    sizes = header.unpack_from(content)[1:] if len(content) >= header.size else (-1,)
    if len(content) != header.size + math.prod(sizes):
        raise ValueError(f"{path} is cut short, or not of this data set: {remedy}")
    if archive.exists():
        check_md5(archive, md5)
        crc = struct.unpack("<I", archive.read_bytes()[-8:-4])[0]
        if zlib.crc32(content) != crc:
            raise ValueError(
                f"{path} is damaged (CRC-32 {zlib.crc32(content):08x}, expected {crc:08x} as in "
                f"{archive.name}): {remedy}"
            )
