"""Images of one's own by the command as a user types it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.contents import class_counts, contents
from datasets.loaders import normalise
from tests.commands import QUIET, call, only_run
from tests.conftest import compose, shrunk
from utils.settings import composition
from utils.settings.build import build_model
from utils.settings.images import load_images

EXPERIMENTS = composition.experiments()
GENERATOR = np.random.default_rng(0)
BATCHES = ["dataset.data_module.batch_size=16", "dataset.data_module.test_batch_size=64"]
FEW = ["train.max_epochs=1", "train.eval_freq=9", "model.is_k=1", "wandb.setup.mode=disabled"]


def write_images(folder, count=60, size=16, classes=("a", "b")):
    """Colour images of noise, in a folder each class."""
    for number in range(count):
        path = folder / classes[number % len(classes)] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = GENERATOR.integers(0, 256, (size, size + 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def own(folder, *changes, experiment="digits_dct_ladder"):
    """An experiment, shrunk, on these images."""
    arguments = [f"experiment={experiment}", *shrunk(experiment), *FEW, "dataset=image_folder"]
    return [*arguments, f"dataset.root={folder}", *BATCHES, *changes]


@pytest.mark.slow
def test_a_folder_of_images_is_trained_on_and_kept_apart(tmp_path):
    write_images(tmp_path / "mine")
    quiet = [*QUIET, "dataset.size=8", "task.estimators=[]"]
    found = call(tmp_path, *own("mine"), *quiet)
    assert "mine: 49 + 2 + 9 images of (3, 8, 8)" in found.stdout
    assert json.loads((only_run(tmp_path) / "results.json").read_text())["dataset"] == "mine"
    write_images(tmp_path / "mine", 3, classes=("c",))
    (only_run(tmp_path) / "results.json").unlink()  # as if it were to go on
    found = call(tmp_path, *own("mine"), *quiet, "train.max_epochs=1", status=1)
    assert "was trained on 49 images of mine" in found.stderr and "name=" in found.stderr


@pytest.mark.slow
def test_other_sizes_work_where_the_scales_divide_them(tmp_path):
    """And where they don't, the sizes that do are named."""
    write_images(tmp_path / "mine", 40)
    changes = ["dataset.size=48", "model.latent_scales=[1,1]", "model.latent_width=[1,1]"]
    splits = load_images(compose(*own_settings(tmp_path, *changes)))
    assert splits.image_shape == (3, 48, 48)
    found = call(tmp_path, *own("mine", "dataset.size=40", experiment="cifar_dct_ladder"), status=1)
    assert "model.latent_scales=[10, 5, 5, 2, 0, 1] halves the image 5 times" in found.stderr
    assert "use 32 or 64" in found.stderr
    found = call(tmp_path, *own("mine", "dataset.size=20", experiment="cifar_dct_ladder"), status=1)
    assert "use 32" in found.stderr


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_takes_them(tmp_path, experiment):
    """In colour and in grey; the likelihood is the images' unless another is asked for."""
    write_images(tmp_path / "mine", 40)
    for channels in (3, 1) if experiment == "mnist_dct_ladder" else (3,):
        images = [f"dataset.root={tmp_path / 'mine'}", f"dataset.cache={tmp_path / 'cache'}"]
        images += ["dataset=image_folder", f"dataset.channels={channels}"]
        settings = compose(experiment, *shrunk(experiment), *images)
        assert settings.model.likelihood == "logistic_mixture"
        splits, model = load_images(settings), build_model(settings)
        model.fit_context(splits.train, splits.max_value)
        out = model(normalise(splits.train[:2], splits.max_value))
        assert splits.image_shape == (channels, 32, 32) and out.kl.isfinite().all()
    settings = compose(experiment, *images, "model.likelihood=gaussian")
    assert settings.model.likelihood == "gaussian"


def own_settings(folder, *changes):
    """For `compose`: the experiment, then its overrides."""
    experiment, cache = "cifar_dct_ladder", f"dataset.cache={folder / 'cache'}"
    arguments = own(folder / "mine", *changes, cache, experiment=experiment)
    return [experiment, *arguments[1:]]


@pytest.mark.slow
def test_the_root_must_be_named(tmp_path):
    arguments = [a for a in own("mine") if not a.startswith("dataset.root")]
    found = call(tmp_path, *arguments, status=1)
    assert found.stderr.startswith("Error: dataset.root has no value")
    assert "set dataset.root=" in found.stderr


@pytest.mark.slow
def test_check_data_tells_what_is_there(tmp_path):
    write_images(tmp_path / "mine", 40)
    for number in (0, 2):
        source = tmp_path / "mine" / "a" / f"{number}.png"
        for copy in range(8):  # the same picture under other names
            source.with_name(f"copy-{copy}-of-{number}.png").write_bytes(source.read_bytes())
    (tmp_path / "mine" / "a" / "text.png").write_text("no image")
    found = call(tmp_path, "task=check_data", *own("mine"))
    folder = tmp_path / "runs" / "check_data" / "mine"
    record = json.loads((folder / "check_data.json").read_text())
    splits = record["splits"]
    assert sum(split["images"] for split in splits.values()) == 56
    repeated = sum(split["repeated"] for split in splits.values())
    across = {other: n for split in splits.values() for other, n in split["also_in"].items() if n}
    assert repeated > 5 and across  # hashes of names decide where copies go
    for split, count in across.items():
        assert f"Note: {count} image(s) of {split} are in " in found.stdout
    assert np.array(list(record["classes"].values())).sum() == 56
    assert 0 <= splits["train"]["min"] < 20 and 235 < splits["train"]["max"] <= 255
    assert "1 passed over, no image, whatever the name says: a/text.png" in found.stdout
    assert record["memory"]["images"] == 56 * 3 * 32 * 32 and record["memory"]["activations"] > 1e6
    with Image.open(folder / "contact_sheet.png") as picture:
        assert picture.width > 800
    assert "beside PyTorch itself" in found.stdout


def test_check_data_counts_exactly():
    settings = compose("digits_dct_ladder")
    splits = load_images(settings)
    doubled = type(splits)(
        torch.cat([splits.train, splits.train[:7], splits.test[:3]]),
        splits.validation,
        splits.test,
        splits.max_value,
    )
    found = contents(doubled)
    assert found["train"].repeated == 7
    assert found["train"].also_in == {"validation": 0, "test": 3}
    x = doubled.train.double() * 255 / 16
    assert abs(found["train"].mean - x.mean()) < 1e-9
    assert abs(found["train"].deviation - x.std(unbiased=False)) < 1e-9
    assert class_counts(doubled) == {}
    without = type(splits)(splits.train, splits.validation[:0], splits.test, splits.max_value)
    assert list(contents(without)) == ["train", "test"]
    balance = class_counts(splits)
    assert len(balance) == 10 and sum(balance["3"]) == 183
