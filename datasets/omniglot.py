"""OMNIGLOT (Lake et al. 2015, MIT licence) in the 28×28 file of Burda et al. (2016).

chardata.mat holds `data` and `testdata`: (784, N) intensities in [0, 1], one image per column in
column-major order, that is, transposed; and `target` and `testtarget`: one-hot alphabets (50, N).
No checksum is published for it, so the reader's own checks have to suffice.
"""

from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat

from datasets.io.download import Remote, fetch
from datasets.splits import ImageSplits, held_out

VALIDATION = 1_000
ALPHABETS = 50
URL = "https://raw.githubusercontent.com/yburda/iwae/master/datasets/OMNIGLOT/chardata.mat"
FILE = "chardata.mat"


def load(root: str, download: bool = True) -> ImageSplits:
    """All but 1,000 + 1,000 + test images (1, 28, 28) from root/OMNIGLOT/chardata.mat."""
    path = Path(root, "OMNIGLOT", FILE)
    fetch(
        "OMNIGLOT",
        root,
        download,
        present=path.is_file,
        files=[Remote(f"OMNIGLOT/{FILE}", (URL,))],
    )
    try:
        arrays = loadmat(path, variable_names=["data", "testdata", "target", "testtarget"])
        images = tuple(_images(arrays[name]) for name in ("data", "testdata"))
        labels = tuple(
            torch.from_numpy(arrays[name].argmax(0)) for name in ("target", "testtarget")
        )
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ValueError(
            f"{path} is damaged or not the published file ({error}): delete it and run again, or "
            "put a good copy there."
        ) from error
    return held_out(images, labels, VALIDATION, tuple(f"alphabet {n}" for n in range(ALPHABETS)))


def _images(columns: np.ndarray) -> torch.Tensor:
    """(784, N) in [0, 1], column-major -> (N, 1, 28, 28) uint8."""
    upright = columns.T.reshape(-1, 1, 28, 28).transpose(0, 1, 3, 2)
    return torch.from_numpy(np.rint(255.0 * upright).astype(np.uint8))
