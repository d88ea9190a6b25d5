"""task=sample streams: of many images only a part is in memory."""

import numpy as np
import pytest
import torch

from tests.conftest import compose, shrunk
from utils.errors import ConfigError
from utils.settings.build import build_model
from utils.tasks import sample
from utils.terminal import Terminal


def test_parts_make_the_file_that_all_at_once_would(tmp_path, monkeypatch):
    model = build_model(compose("digits_ladder", *shrunk("digits_ladder"))).eval()
    (whole,) = sample.draws(model, 7, 1.0, seed=3)
    monkeypatch.setattr(sample, "SAMPLE_BATCH", 3)
    with open(tmp_path / "samples.npz", "wb") as file:
        sample._write_npz(file, (7, 8, 8, 1), sample.draws(model, 7, 1.0, seed=3))
    images = np.load(tmp_path / "samples.npz")["images"]
    assert images.dtype == np.uint8 and torch.equal(torch.from_numpy(images), whole)


def test_what_takes_long_is_told_after_the_first_part(capsys, monkeypatch):
    times = iter((0.0, 2.0, 2.1))
    monkeypatch.setattr(sample.time, "monotonic", lambda: next(times))
    parts = (torch.zeros(500) for _ in range(2))
    assert len(list(sample._told(parts, 100_000_000, Terminal()))) == 2
    assert capsys.readouterr().out == "100,000,000 samples will take about 4.6 days.\n"


def test_what_no_disk_holds_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"task.num_images=\d+ are [\d,]+ GB of images"):
        sample._check_space(tmp_path, 10**18, 10**15)
