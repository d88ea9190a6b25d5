"""Checkpoints load alone, without running anything, or say in one sentence why not."""

import os

import pytest
import torch

from tests.conftest import compose, shrunk
from utils import checkpoint
from utils.build import build_model
from utils.checkpoint import load_model
from utils.config import without_secrets
from utils.files import atomic_write

EXPERIMENT = "digits_dct_ladder"


class Malicious:
    """Runs a command when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.fixture
def trained(tmp_path):
    """(path, model) of a saved small model with averaged weights beside the trained ones."""
    settings = compose(EXPERIMENT, *shrunk(EXPERIMENT), "wandb.api_key=planted-key")
    torch.manual_seed(1)
    model = build_model(settings)
    averaged = {f"module.{k}": v + 1 for k, v in model.state_dict().items()}
    state = {"model": model.state_dict(), "ema": {"n_averaged": torch.tensor(2), **averaged}}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    path = tmp_path / "run" / "checkpoints" / "best.pth"
    return checkpoint.save(path, without_secrets(settings), state), model


def test_a_file_is_all_it_takes(trained):
    path, model = trained
    loaded, config = load_model(path)
    assert not loaded.training and config.model.num_ch == 16
    for name, value in loaded.state_dict().items():  # the average is what gets evaluated
        assert torch.equal(value, model.state_dict()[name] + 1)
    folder = path.parent.parent
    again, _ = load_model(folder)
    assert all(map(torch.equal, again.state_dict().values(), loaded.state_dict().values()))
    assert checkpoint.home(path, "runs") == checkpoint.home(folder, "runs") == folder
    assert load_model(path, ["model.is_k=7"])[1].model.is_k == 7
    assert b"planted-key" not in path.read_bytes()


def test_wrong_files_get_one_sentence(trained, tmp_path):
    path, _ = trained
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:5000])
    text = tmp_path / "text.pth"
    text.write_text("not a checkpoint")
    other = tmp_path / "other.pth"
    torch.save({"weights": torch.zeros(3)}, other)
    tensor = tmp_path / "tensor.pth"
    torch.save(torch.zeros(3), tensor)
    newer = tmp_path / "newer.pth"
    torch.save({**torch.load(path, weights_only=True), "schema": 99}, newer)
    for source, complaint in (
        (tmp_path / "missing.pth", "is not a file"),
        (tmp_path, "is not a file"),
        (cut, "is damaged"),
        (text, "is damaged"),
        (other, "neither one of this project's nor a published one"),
        (tensor, "holds no weights"),
        (newer, "newer version of this project"),
    ):
        with pytest.raises(ValueError, match=complaint) as caught:
            load_model(source)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="another architecture"):
        load_model(path, ["model.num_ch=32"])


def test_nothing_in_a_file_is_run_unless_asked(tmp_path):
    path, trace = tmp_path / "bad.pth", tmp_path / "trace"
    torch.save({"format": checkpoint.FORMAT, "schema": 1, "x": Malicious(trace)}, path)
    with pytest.raises(ValueError, match="more than tensors and plain containers"):
        load_model(path)
    assert not trace.exists()
    checkpoint.read(path, unsafe=True)
    assert trace.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic_write(path, lambda file: file.write(b"old"))

    def broken(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, broken)
    assert path.read_bytes() == b"old"


def test_a_model_starts_from_anothers_weights(trained, tmp_path):
    path, model = trained
    settings = compose(EXPERIMENT, *shrunk(EXPERIMENT))
    fresh = build_model(settings)
    checkpoint.initialise(fresh, str(path))
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, model.state_dict()[name] + 1)  # the average
    wider = build_model(compose(EXPERIMENT, *shrunk(EXPERIMENT), "model.num_ch=32"))
    with pytest.raises(ValueError, match=r"train\.init_from=.*use the settings it was"):
        checkpoint.initialise(wider, str(path))
    other = tmp_path / "other.pth"
    torch.save({"weights": torch.zeros(2)}, other)
    with pytest.raises(ValueError, match=r"train\.init_from=.*is no checkpoint of a model"):
        checkpoint.initialise(fresh, str(other))
    with pytest.raises(ValueError, match=r"train\.init_from=.*is not a file"):
        checkpoint.initialise(fresh, str(tmp_path / "none.pth"))
