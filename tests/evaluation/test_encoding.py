"""Latents in files: the same in one file or many, stopped or not."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.splits import ImageSplits
from model.noise import Noise, NoisePurpose
from tests.conftest import compose, randomised, shrunk
from utils.errors import ConfigError
from utils.evaluation.encoding import Subject, describe, write_latents
from utils.processes.ranks import Processes
from utils.settings.build import build_model

IMAGES = torch.randint(0, 17, (50, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
LABELS = torch.arange(50) % 3
SPLITS = ImageSplits(IMAGES[:0], IMAGES[:0], IMAGES, 16, (LABELS[:0], LABELS[:0], LABELS))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    settings = compose("digits_dct_ladder", *shrunk("digits_dct_ladder"))
    return randomised(build_model(settings), 0.05).eval()


def write(model, folder, megabytes=1.0, values="sample", processes=None, tick=lambda done: None):
    """The files of the test split."""
    subject = Subject.of(SPLITS, "test", None)
    source = {"checkpoint_digest": "1", "dataset": "digits", "split": "test", "classes": []}
    encoding = describe(model, subject, [0, 2], values, megabytes, 0, **source)
    arguments = (CPU, 7, processes or Processes(), tick)
    return write_latents(model, subject, encoding, folder, *arguments), encoding


def read(path: Path) -> dict:
    """The arrays of one file."""
    with np.load(path) as content:
        return dict(content)


@pytest.mark.parametrize("values", ["mean", "sample"])
@torch.no_grad()
def test_one_file_holds_what_the_model_says(model, tmp_path, values):
    path, _ = write(model, tmp_path, values=values)
    found, x = read(path), 2.0 * IMAGES / 16 - 1
    noise = Noise.keyed(torch.arange(50), 0, NoisePurpose.ENCODING)
    encoded = model.latents(x, temperature=float(values == "sample"), noise=noise)
    assert sorted(found) == ["ids", "labels", "layer_0", "layer_2"]
    assert found["ids"].tolist() == list(range(50)) and found["labels"].tolist() == LABELS.tolist()
    for layer in (0, 2):
        wanted = encoded[layer].mean if values == "mean" else encoded[layer].sample
        np.testing.assert_allclose(found[f"layer_{layer}"], wanted, rtol=1e-4, atol=1e-5)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["images"] == 50 and record["values"] == values and record["layers"] == [0, 2]


def test_a_folder_is_continued_where_it_was_left_and_the_same_as_one_file(model, tmp_path):
    megabytes = 0.002  # 38 images
    whole = read(write(model, tmp_path)[0])

    def stop(done: int) -> None:
        if len(list(tmp_path.rglob("0*.npz"))) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, tmp_path, megabytes, tick=stop)
    folder = tmp_path / "latents_test"
    assert sorted(p.name for p in folder.iterdir()) == ["00000.npz", "index.json"]
    before = (folder / "00000.npz").stat()
    path, encoding = write(model, tmp_path, megabytes)
    assert path == folder and (folder / "00000.npz").stat() == before
    files = sorted(folder.glob("*.npz"))
    assert len(files) == encoding.files == 2
    for name, values in whole.items():
        joined = np.concatenate([read(file)[name] for file in files])
        np.testing.assert_allclose(joined, values, rtol=1e-4, atol=1e-5)
    assert max(file.stat().st_size for file in files) < 6000
    pair = [Processes(rank=rank, world=2) for rank in (0, 1)]
    for each in pair:
        write(model, tmp_path / "shared", megabytes, processes=each)
    for file in files:
        other = read(tmp_path / "shared" / "latents_test" / file.name)
        np.testing.assert_array_equal(read(file)["layer_2"], other["layer_2"])


def test_a_folder_of_other_latents_is_refused(model, tmp_path):
    write(model, tmp_path, 0.002)
    with pytest.raises(ConfigError, match="holds latents of values=sample, where mean is asked"):
        write(model, tmp_path, 0.002, values="mean")
    (tmp_path / "latents_test" / "index.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no record of latents"):
        write(model, tmp_path, 0.002)
    (tmp_path / "latents_test" / "index.json").unlink()
    with pytest.raises(ConfigError, match="something else than latents: name another folder"):
        write(model, tmp_path, 0.002)


def test_labels_and_images_are_cut_together():
    subject = Subject.of(SPLITS, "test", 5)
    assert len(subject) == len(subject.labels) == 5
    assert Subject.of(replace(SPLITS, labels=None), "test", 5).labels is None
