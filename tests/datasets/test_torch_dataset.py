"""Somebody else's torch Dataset, in a package that knows nothing of this project."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.io import cache
from datasets.splits import SPLITS
from datasets.torch_dataset import image_of, image_source
from tests.commands import QUIET, call, environment, only_run
from tests.conftest import shrunk

PACKAGE = '''
"""Squares of noise."""
import torch
from torch.utils.data import Dataset


class Squares(Dataset):
    def __init__(self, side, count=200, train=True):
        generator = torch.Generator().manual_seed(int(train))
        shape = (count if train else count // 4, 1, side, side)
        self.images = torch.randint(0, 256, shape, generator=generator).byte()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index].float() / 255, 7


def streamed(side):
    return iter(Squares(side))
'''
CUSTOM = ["dataset=custom", "dataset._target_=their.module.Squares", "+dataset.side=8"]
CUSTOM += ["dataset.image_size=8", "dataset.channels=1", "dataset.data_module.batch_size=20"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """their.module, somewhere on the path."""
    (tmp_path / "elsewhere" / "their").mkdir(parents=True)
    (tmp_path / "elsewhere" / "their" / "__init__.py").touch()
    (tmp_path / "elsewhere" / "their" / "module.py").write_text(PACKAGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))


def command(folder, *arguments, **options):
    """The command, by the shell's Python path."""
    few = ["train.max_epochs=1", "train.eval_freq=9", "dataset.data_module.test_batch_size=50"]
    few += ["model.likelihood=logistic"]
    own = ["experiment=digits_dct_ladder", *shrunk("digits_dct_ladder"), *few, *QUIET]
    return call(folder, *own, *arguments, launcher=("env",), **options)


@pytest.mark.slow
def test_a_dataset_of_another_package_is_trained_on(package, tmp_path):
    assert "PYTHONPATH" in environment(tmp_path)
    found = command(tmp_path, *CUSTOM, "dataset.test_arguments={train: false}")
    assert "custom: 186 + 14 + 50 images of (1, 8, 8)" in found.stdout
    scores = json.loads((only_run(tmp_path) / "results.json").read_text())
    assert scores["bound"]["images"] == 50
    assert len(list((tmp_path / "data" / "cache").glob("*.images"))) == 1


@pytest.mark.slow
def test_what_is_wrong_with_a_dataset_is_told(package, tmp_path):
    wrong = {
        "dataset.image_size=4": r"don't fit the images of custom, \(1, 8, 8\): use 1 and 8",
        "dataset._target_=their.module.streamed": "gives a .*iterator.*: name a class of torch",
        "dataset._target_=their.module.Nothing": "their.module.Nothing failed",
        "dataset.levels=17": None,  # floats in [0, 1] are any number of levels
        "+dataset.colour=red": "unexpected keyword argument .*colour",
    }
    for argument, said in wrong.items():
        found = command(tmp_path, *CUSTOM, argument, status=0 if said is None else 1)
        if said is not None:
            assert re.search(said, found.stderr), found.stderr
            assert len(found.stderr.splitlines()) == 1
    found = command(tmp_path, "dataset._target_=their.module.Squares", "+dataset.side=8", status=1)
    assert "is a torch Dataset, for which dataset.validation_share is missing" in found.stderr


def test_items_of_every_kind_are_the_same_image():
    levels = np.random.default_rng(0).integers(0, 256, (3, 6, 6), dtype=np.uint8)
    tensor = torch.from_numpy(levels)
    kinds = [
        tensor,
        (tensor, 3),
        [tensor.float() / 255],
        levels,
        levels.transpose(1, 2, 0),
        Image.fromarray(levels.transpose(1, 2, 0)),
        (levels / 255.0).astype(np.float64),
    ]
    for kind in kinds:
        assert np.array_equal(image_of(kind, 255, "item 0"), levels)
    assert np.array_equal(image_of(levels[0], 255, "item 0"), levels[:1])
    assert np.array_equal(image_of(torch.eye(4), 16, "item 0")[0], 16 * np.eye(4))


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (torch.full((1, 4, 4), -0.5), r"levels from -128 to -128 where dataset.levels=256"),
        (torch.full((1, 4, 4), torch.nan), "levels from nan"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), "is int64: use uint8"),
        (torch.zeros(5, 4, 4), "is no image"),
        ("a path", "is no image"),
    ],
)
def test_items_that_are_no_images(item, said):
    with pytest.raises(ValueError, match=said):
        image_of(item, 255, "their.Set, item 3")


def test_an_image_of_another_shape_and_an_empty_set(tmp_path):
    images = [torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)]
    with pytest.raises(ValueError, match=r"item 1 has the shape .*4, 5.*crop or resize"):
        image_source({"all": images}, "their.Set", 255)
    with pytest.raises(ValueError, match="has no images"):
        image_source({"all": []}, "their.Set", 255)
    with pytest.raises(ValueError, match="has no length"):
        image_source({"all": iter(images)}, "their.Set", 255)


def test_a_set_that_changes_is_stored_anew(tmp_path):
    images = torch.randint(0, 256, (50, 1, 4, 4)).byte()

    def load(images):
        found = image_source({"all": list(images)}, "their.Set", 255)
        splits = cache.load(found, str(tmp_path), 1, 0.2, 0.2)
        return torch.cat([getattr(splits, split) for split in SPLITS])

    def as_set(images):
        return {tuple(image.flatten().tolist()) for image in images}

    assert as_set(load(images)) == as_set(images)
    assert as_set(load(images + 1)) == as_set(images + 1)


def test_palettes_and_other_modes_are_colours_not_indices():
    white = Image.new("RGB", (2, 2), "white")
    white.putpixel((0, 0), (10, 10, 10))
    for mode, shape in (("P", (3, 2, 2)), ("1", (1, 2, 2)), ("CMYK", (3, 2, 2))):
        found = image_of(white.convert(mode), 255, "item")
        assert found.shape == shape and found[0, 1, 1] == 255 and found[0, 0, 0] <= 10
