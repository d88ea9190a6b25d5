"""Each source read from files in its real format; nothing here uses the network."""

import gzip
import hashlib
import pickle
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from scipy.io import savemat

from datasets import cifar10, digits, mnist, omniglot, svhn

GENERATOR = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    """Random bytes."""
    return GENERATOR.integers(0, 256, shape, dtype=np.uint8)


def write_mnist(root, monkeypatch, train=6, test=3) -> dict:
    """IDX files as MNIST's, with their checksums taken for the published ones."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    arrays = {"train": noise(train, 28, 28), "t10k": noise(test, 28, 28)}
    for name, images in arrays.items():
        header = struct.pack(">4i", 2051, *images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = struct.pack(">2i", 2049, len(images)) + bytes(len(images))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setattr(mnist, "MD5", sums)
    return arrays


def test_digits():
    splits = digits.load()
    sizes = [len(s) for s in (splits.train, splits.validation, splits.test)]
    assert sizes == [1300, 200, 297] and splits.image_shape == (1, 8, 8)
    assert splits.max_value == int(splits.train.max()) == 16
    whole = torch.cat([splits.train, splits.validation, splits.test])
    assert len(whole) == 1797


def test_mnist(tmp_path, monkeypatch):
    arrays = write_mnist(tmp_path, monkeypatch)
    monkeypatch.setattr(mnist, "VALIDATION", 2)
    splits = mnist.load(str(tmp_path), download=False)
    assert torch.equal(splits.test[:, 0], torch.from_numpy(arrays["t10k"]))
    both = torch.cat([splits.train, splits.validation])[:, 0].flatten(1)
    assert {tuple(i.tolist()) for i in both} == {tuple(i.ravel().tolist()) for i in arrays["train"]}


def test_a_file_cut_short_is_named_with_both_checksums(tmp_path, monkeypatch):
    write_mnist(tmp_path, monkeypatch)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    expected = mnist.MD5[path.name]
    path.write_bytes(path.read_bytes()[:-100])
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"{path.name} is damaged.*{found}.*{expected}.*delete it"):
        mnist.load(str(tmp_path), download=False)


@pytest.mark.parametrize("source", [mnist, omniglot, cifar10, svhn])
def test_missing_files_name_the_folder_and_the_remedy(tmp_path, source):
    with pytest.raises(ValueError, match=f"{tmp_path}.*download=false.*set dataset.root"):
        source.load(str(tmp_path), download=False)


def test_no_network_names_the_folder_and_the_remedy(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("Connection refused")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    for source in (mnist, omniglot, cifar10, svhn):
        with pytest.raises(ValueError, match=f"{tmp_path}.*could not be downloaded.*dataset.root"):
            source.load(str(tmp_path), download=True)


@pytest.fixture
def server(tmp_path):
    """A web server on loopback that serves tmp_path/source."""
    (tmp_path / "source").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "source"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_mnist_downloads_and_checks_archives(tmp_path, monkeypatch, server):
    """The real fetch, over HTTP; a damaged archive is refused."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    arrays = write_mnist(tmp_path / "source", monkeypatch)
    folder = tmp_path / "source" / "MNIST" / "raw"
    resources = []
    for path in sorted(folder.iterdir()):
        archive = tmp_path / "source" / f"{path.name}.gz"
        archive.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))
    monkeypatch.setattr(mnist.MNIST, "mirrors", [server])
    monkeypatch.setattr(mnist.MNIST, "resources", resources)
    monkeypatch.setattr(mnist, "VALIDATION", 2)
    splits = mnist.load(str(tmp_path / "here"))
    assert torch.equal(splits.test[:, 0], torch.from_numpy(arrays["t10k"]))
    monkeypatch.setattr(mnist.MNIST, "resources", [(name, "0" * 32) for name, _ in resources])
    with pytest.raises(ValueError, match="could not be downloaded"):
        mnist.load(str(tmp_path / "elsewhere"))


def test_omniglot_images_stand_upright(tmp_path, monkeypatch):
    images = noise(5, 28, 28)
    columns = images.transpose(0, 2, 1).reshape(5, 784).T / 255.0  # column-major, one a column
    (tmp_path / "OMNIGLOT").mkdir()
    path = tmp_path / "OMNIGLOT" / "chardata.mat"
    savemat(path, {"data": columns, "testdata": columns[:, :2]})
    monkeypatch.setattr(omniglot, "VALIDATION", 1)
    splits = omniglot.load(str(tmp_path), download=False)
    assert torch.equal(splits.test[:, 0], torch.from_numpy(images[:2]))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"chardata.mat is damaged"):
        omniglot.load(str(tmp_path), download=False)


def test_cifar10(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = noise(6, 3, 32, 32)
    parts = {"data_batch_1": images[:4], "test_batch": images[4:]}
    for name, part in parts.items():
        content = {"data": part.reshape(len(part), -1), "labels": [0] * len(part)}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a"]}))
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setattr(cifar10.CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(cifar10.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setitem(cifar10.CIFAR10.meta, "md5", sums["batches.meta"])
    monkeypatch.setattr(cifar10, "VALIDATION", 1)
    splits = cifar10.load(str(tmp_path), download=False)
    assert torch.equal(splits.test, torch.from_numpy(images[4:]))
    assert len(splits.train) == 3 and splits.image_shape == (3, 32, 32)


def test_svhn(tmp_path, monkeypatch):
    images = noise(4, 3, 32, 32)
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": np.ones((4, 1), np.uint8)})
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(svhn.SVHN.split_list, split, ["", path.name, md5])
    monkeypatch.setattr(svhn, "VALIDATION", 1)
    splits = svhn.load(str(tmp_path), download=False)
    assert torch.equal(splits.test, torch.from_numpy(images))
    assert len(splits.train) == 3 and len(splits.validation) == 1


def test_real_mnist(shared_data):
    splits = mnist.load(str(shared_data), download=False)
    sizes = [len(s) for s in (splits.train, splits.validation, splits.test)]
    assert sizes == [55_000, 5_000, 10_000]
    assert splits.train.dtype == torch.uint8 and splits.max_value == 255


def test_real_omniglot_strokes(shared_data):
    splits = omniglot.load(str(shared_data), download=False)
    assert splits.image_shape == (1, 28, 28)
    assert len(splits.train) + len(splits.validation) == 3_630 and len(splits.test) == 1_210
    assert 0.02 < splits.train.float().mean() / 255 < 0.3
