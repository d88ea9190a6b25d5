"""Each source read from files in its real format; nothing here uses the network."""

import gzip
import hashlib
import io
import pickle
import resource
import struct
import sys
import tarfile
import threading
import types
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat, savemat
from torchvision.datasets import MNIST

from datasets import (
    celeba,
    cifar10,
    cifar100,
    digits,
    fashion_mnist,
    kmnist,
    mnist,
    omniglot,
    svhn,
)
from datasets.io import cache, download

GENERATOR = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    """Random bytes."""
    return GENERATOR.integers(0, 256, shape, dtype=np.uint8)


def write_idx(folder, train=6, test=3) -> dict:
    """IDX files as MNIST's; labels count from 0."""
    folder.mkdir(parents=True)
    arrays = {"train": noise(train, 28, 28), "t10k": noise(test, 28, 28)}
    for name, images in arrays.items():
        header = struct.pack(">4i", 2051, *images.shape)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = struct.pack(">2i", 2049, len(images)) + bytes(range(len(images)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels)
    return arrays


def write_mnist(root, monkeypatch, train=6, test=3) -> dict:
    """The same at MNIST's place, with their checksums taken for the published ones."""
    folder = root / "MNIST" / "raw"
    arrays = write_idx(folder, train, test)
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
    counts = [torch.bincount(labels).sum() for labels in splits.labels]
    assert counts == sizes and len(splits.classes) == 10


def test_mnist(tmp_path, monkeypatch):
    arrays = write_mnist(tmp_path, monkeypatch)
    monkeypatch.setattr(mnist, "VALIDATION", 2)
    splits = mnist.load(str(tmp_path), download=False)
    assert torch.equal(splits.test[:, 0], torch.from_numpy(arrays["t10k"]))
    order = torch.cat(splits.labels[:2])  # labels go with their images
    both = torch.cat([splits.train, splits.validation])[:, 0].flatten(1)
    assert torch.equal(both, torch.from_numpy(arrays["train"])[order].flatten(1))
    assert {tuple(i.tolist()) for i in both} == {tuple(i.ravel().tolist()) for i in arrays["train"]}
    theirs = MNIST(str(tmp_path), train=False)  # torchvision's reader says the same
    assert torch.equal(splits.test[:, 0], theirs.data) and splits.classes == tuple(theirs.classes)
    assert torch.equal(splits.labels[2], theirs.targets)
    assert splits.labels[2].dtype == theirs.targets.dtype


def test_a_file_cut_short_is_named_with_both_checksums(tmp_path, monkeypatch):
    write_mnist(tmp_path, monkeypatch)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    expected = mnist.MD5[path.name]
    path.write_bytes(path.read_bytes()[:-100])
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"{path.name} is damaged.*{found}.*{expected}.*delete it"):
        mnist.load(str(tmp_path), download=False)


SOURCES = [mnist, fashion_mnist, kmnist, omniglot, cifar10, cifar100, svhn]


@pytest.mark.parametrize("source", [*SOURCES, partial(celeba.load, size=64)])
def test_missing_files_name_the_folder_and_the_remedy(tmp_path, source):
    load = getattr(source, "load", source)
    with pytest.raises(ValueError, match=f"{tmp_path}.*download=false.*set dataset.root.*put "):
        load(str(tmp_path), download=False)
    assert not list(tmp_path.iterdir())


def test_no_network_names_the_folder_and_the_remedy(tmp_path, monkeypatch):
    def refused(*args, **kwargs):
        raise OSError("Connection refused")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    for source in SOURCES:
        with pytest.raises(
            ValueError, match=r"could not be downloaded.*refused.*dataset.root"
        ) as it:
            source.load(str(tmp_path), download=True)
        assert f"into {tmp_path}" in str(it.value)
        assert "MD5" in str(it.value) or source is omniglot  # for which none is published


class Source(SimpleHTTPRequestHandler):
    """A folder, served with ranges as most sources do; breaks off after `server.breaks_after`."""

    def do_GET(self):
        """As the base class does it, but for the range."""
        self.server.ranges.append(self.headers.get("Range"))
        try:
            content = open(self.translate_path(self.path), "rb").read()
        except OSError:
            self.send_error(404)
            return
        first = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if not self.server.has_ranges:
            first = 0
        if first >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        self.wfile.write(content[first:][: self.server.breaks_after])

    def log_message(self, *arguments):
        """Not into the test's output."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on loopback that serves tmp_path/source."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "source").mkdir()
    handler = partial(Source, directory=str(tmp_path / "source"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.ranges, running.breaks_after, running.has_ranges = [], None, True
        running.url = f"http://127.0.0.1:{running.server_port}/"
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server, folder, name="some.bin", md5=None):
    """Obtain a file from the server."""
    download.obtain(
        "Some", folder, download.Remote(name, (server.url + name,), md5), download.download_url
    )
    return (folder / name).read_bytes()


def test_a_download_goes_on_where_it_broke_off(tmp_path, server):
    content = noise(5000).tobytes()
    (tmp_path / "source" / "some.bin").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    server.breaks_after = 2000
    assert get(server, tmp_path / "a", md5=md5) == content
    assert server.ranges == [None, "bytes=2000-", "bytes=4000-"]
    server.ranges.clear()
    server.breaks_after = 700  # too often: what came is kept for the next command
    with pytest.raises(ValueError, match=f"3500 of 5000 bytes.*put some.bin .MD5 {md5}. into"):
        get(server, tmp_path / "b", md5=md5)
    server.breaks_after = None
    assert get(server, tmp_path / "b", md5=md5) == content
    assert server.ranges[-1] == "bytes=3500-" and not list(tmp_path.glob("b/*.part"))
    server.has_ranges = False  # it then sends the whole again
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "some.bin.part").write_bytes(b"12345")
    assert get(server, tmp_path / "c", md5=md5) == content


def test_what_is_left_of_something_longer_is_fetched_anew(tmp_path, server):
    (tmp_path / "source" / "some.bin").write_bytes(b"short")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "some.bin.part").write_bytes(b"of another, longer file")
    assert get(server, tmp_path / "a") == b"short"


def test_a_root_that_cannot_be_written_to_is_named_before_any_download(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"dataset.root=.*file does not .* written to \(File ex"):
        get(server, tmp_path / "file")
    assert server.ranges == []
    (tmp_path / "source" / "some.bin").write_bytes(noise(5000).tobytes())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # bytes per file
    try:
        with pytest.raises(ValueError, match=r"dataset.root=.*no room for some.bin .*make some"):
            get(server, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(get(server, tmp_path / "full")) == 5000 and len(server.ranges) == 2


def test_a_link_in_a_downloads_place_is_not_written_through(tmp_path, server):
    (tmp_path / "source" / "some.bin").write_bytes(b"some")
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "some.bin.part").symlink_to(tmp_path / "precious")
    assert get(server, tmp_path / "a") == b"some"
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_source_that_is_gone_and_one_that_sends_something_else(tmp_path, server):
    with pytest.raises(ValueError, match=r"some.bin: .*404.*put some.bin \(MD5 abc\) into"):
        get(server, tmp_path / "a", md5="abc")
    (tmp_path / "source" / "some.bin").write_bytes(b"<html>moved</html>")
    found = hashlib.md5(b"<html>moved</html>").hexdigest()
    with pytest.raises(ValueError, match=f"MD5 {found}, expected abc: put some.bin"):
        get(server, tmp_path / "a", md5="abc")
    assert not list((tmp_path / "a").iterdir())
    (tmp_path / "a" / "some.bin").write_bytes(b"put there by hand")  # is not deleted, but named
    with pytest.raises(ValueError, match=r"some.bin is damaged.*expected abc.: delete it"):
        get(server, tmp_path / "a", md5="abc")


@pytest.mark.parametrize("source", [mnist, fashion_mnist, kmnist])
def test_mnist_downloads_and_checks_archives(tmp_path, monkeypatch, server, source):
    """The real fetch, over HTTP; a damaged archive is refused."""
    arrays = write_idx(tmp_path / "raw")
    resources, sums = [], {}
    for path in sorted((tmp_path / "raw").iterdir()):
        archive = tmp_path / "source" / f"{path.name}.gz"
        archive.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((archive.name, hashlib.md5(archive.read_bytes()).hexdigest()))
        sums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    kinds = {mnist: MNIST, fashion_mnist: fashion_mnist.FashionMNIST, kmnist: kmnist.KMNIST}
    kind = kinds[source]
    monkeypatch.setattr(mnist, "MD5", sums)
    monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/", server.url])  # one has gone
    monkeypatch.setattr(kind, "resources", resources)
    monkeypatch.setattr(source, "VALIDATION", 2)
    splits = source.load(str(tmp_path / "here"))
    assert torch.equal(splits.test[:, 0], torch.from_numpy(arrays["t10k"]))
    assert torch.equal(splits.test, source.load(str(tmp_path / "here"), download=False).test)
    monkeypatch.setattr(kind, "resources", [(name, "0" * 32) for name, _ in resources])
    with pytest.raises(ValueError, match=f"{resources[0][1]}, expected {'0' * 32}"):
        source.load(str(tmp_path / "elsewhere"))


def test_an_unpacked_file_of_fashion_mnist_that_was_harmed(tmp_path, monkeypatch):
    folder = tmp_path / "FashionMNIST" / "raw"
    write_idx(folder)
    path = folder / "train-images-idx3-ubyte"
    content = path.read_bytes()
    (folder / f"{path.name}.gz").write_bytes(gzip.compress(content))
    md5 = hashlib.md5((folder / f"{path.name}.gz").read_bytes()).hexdigest()
    others = fashion_mnist.FashionMNIST.resources[1:]
    resources = [(f"{path.name}.gz", md5), *others]
    monkeypatch.setattr(fashion_mnist.FashionMNIST, "resources", resources)
    monkeypatch.setattr(fashion_mnist, "VALIDATION", 2)
    assert len(fashion_mnist.load(str(tmp_path), download=False).train) == 4
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{path} is cut short"):
        fashion_mnist.load(str(tmp_path), download=False)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{path} is damaged .CRC-32 .*, expected"):
        fashion_mnist.load(str(tmp_path), download=False)


def write_celeba(root, monkeypatch, splits="001122", member=None) -> list[np.ndarray]:
    """CelebA's archive and list of splits, with their checksums taken for the published ones."""
    folder = root / "celeba"
    folder.mkdir(parents=True)
    faces = [noise(218, 178, 3) for _ in splits]
    with zipfile.ZipFile(folder / celeba.ARCHIVE, "w") as archive:
        for number, face in enumerate(faces):
            buffer = io.BytesIO()
            Image.fromarray(face).save(buffer, "PNG")  # which loses nothing, unlike its JPEGs
            archive.writestr(f"img_align_celeba/{number:06}.jpg", buffer.getvalue())
        if member:
            archive.writestr(member, b"outside")
    lines = [f"{number:06}.jpg {split}" for number, split in enumerate(splits)]
    (folder / celeba.PARTITION).write_text("\n".join(lines) + "\n")
    md5s = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    known = [("id-of-" + name, md5, name) for name, md5 in md5s.items()]
    monkeypatch.setattr(celeba.CelebA, "file_list", known)
    return faces


def test_celeba(tmp_path, monkeypatch):
    faces = write_celeba(tmp_path, monkeypatch, member="../../outside")
    found = celeba.load(str(tmp_path), 148, download=False)
    splits = cache.load(found, str(tmp_path / "cache"), 1)
    squares = [torch.from_numpy(f[40:188, 15:163]).permute(2, 0, 1) for f in faces]
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [2, 2, 2]
    whole = torch.cat([splits.train, splits.validation, splits.test])
    assert torch.equal(whole, torch.stack(squares))
    folder = tmp_path / "celeba"
    with zipfile.ZipFile(folder / celeba.ARCHIVE) as archive:
        archive.extractall(folder, [n for n in archive.namelist() if ".." not in n])
    (folder / celeba.ARCHIVE).unlink()  # the folder alone does as well
    again = cache.load(celeba.load(str(tmp_path), 148, False), str(tmp_path / "cache"), 1)
    assert torch.equal(again.train, splits.train)
    assert not list(tmp_path.rglob("outside"))  # what climbs out of the archive is never unpacked
    (folder / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(ValueError, match=r"not whole: 000003.jpg is missing"):
        cache.load(celeba.load(str(tmp_path), 64, False), str(tmp_path / "cache"), 1)


def test_celeba_comes_from_google_drive(tmp_path, monkeypatch):
    """Through gdown, which resumes; without it, the files and their checksums are told."""
    write_celeba(tmp_path / "drive", monkeypatch)
    by_id = {"id-of-" + p.name: p for p in (tmp_path / "drive" / "celeba").iterdir()}
    asked = []

    def download(id, output, resume, quiet):
        asked.append((id, resume))
        with open(output, "wb") as file:
            file.write(by_id[id].read_bytes())

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    found = celeba.load(str(tmp_path / "here"), 64)
    assert len(found.parts["train"]) == 2 and {i for i, _ in asked} == set(by_id)
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[celeba\]'.*MD5 .*into"):
        celeba.load(str(tmp_path / "there"), 64)


def test_omniglot_images_stand_upright(tmp_path, monkeypatch):
    images = noise(5, 28, 28)
    columns = images.transpose(0, 2, 1).reshape(5, 784).T / 255.0  # column-major, one a column
    (tmp_path / "OMNIGLOT").mkdir()
    path = tmp_path / "OMNIGLOT" / "chardata.mat"
    alphabets = np.eye(50)[:, [4, 3, 2, 1, 0]]
    content = {"data": columns, "testdata": columns[:, :2]}
    savemat(path, {**content, "target": alphabets, "testtarget": alphabets[:, :2]})
    monkeypatch.setattr(omniglot, "VALIDATION", 1)
    splits = omniglot.load(str(tmp_path), download=False)
    assert torch.equal(splits.test[:, 0], torch.from_numpy(images[:2]))
    both = torch.cat([splits.train, splits.validation])[:, 0]
    assert torch.equal(both, torch.from_numpy(images)[4 - torch.cat(splits.labels[:2])])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"chardata.mat is damaged"):
        omniglot.load(str(tmp_path), download=False)


def write_cifar(root, monkeypatch, module=cifar10) -> np.ndarray:
    """Batches as the data set's and their archive, with their checksums for the published ones."""
    hundred = module is cifar100
    source = cifar100.CIFAR100 if hundred else cifar10.CIFAR10
    train, test = ("train", "test") if hundred else ("data_batch_1", "test_batch")
    folder = root / source.base_folder
    folder.mkdir(parents=True)
    images, labels = noise(6, 3, 32, 32), "fine_labels" if hundred else "labels"
    for name, part in {train: images[:4], test: images[4:]}.items():
        content = {"data": part.reshape(len(part), -1), labels: list(range(len(part)))}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {source.meta["key"]: ["a", "b", "c", "d"]}
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(names))
    sums = {p.name: hashlib.md5(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    monkeypatch.setattr(source, "train_list", [[train, sums[train]]])
    monkeypatch.setattr(source, "test_list", [[test, sums[test]]])
    monkeypatch.setitem(source.meta, "md5", sums[source.meta["filename"]])
    monkeypatch.setattr(module, "VALIDATION", 1)
    return images


@pytest.mark.parametrize("module", [cifar10, cifar100])
def test_cifar(tmp_path, monkeypatch, module):
    images = write_cifar(tmp_path, monkeypatch, module)
    splits = module.load(str(tmp_path), download=False)
    assert torch.equal(splits.test, torch.from_numpy(images[4:]))
    assert len(splits.train) == 3 and splits.image_shape == (3, 32, 32)
    both = torch.cat([splits.train, splits.validation])
    assert torch.equal(both, torch.from_numpy(images)[torch.cat(splits.labels[:2])])
    (path,) = tmp_path.glob("*/test*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} is damaged .*MD5 .*, expected .*delete it"):
        module.load(str(tmp_path), download=False)
    (names,) = tmp_path.glob("*/*meta")
    names.unlink()
    with pytest.raises(ValueError, match="download=false: set dataset"):
        module.load(str(tmp_path), download=False)


def test_an_archive_cannot_climb_out_of_the_data_folder(tmp_path, monkeypatch, server):
    """Another archive is not unpacked; nor is what climbs in one that the checksum allows."""
    write_cifar(tmp_path / "made", monkeypatch)
    archive = tmp_path / "source" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
        (tmp_path / "made" / "climber").write_bytes(b"x")
        tar.add(tmp_path / "made" / "climber", "../../climbed")
    monkeypatch.setattr(cifar10.CIFAR10, "url", server.url + archive.name)
    with pytest.raises(ValueError, match=f"{archive.name} has MD5 .*, expected c58f30108f718f"):
        cifar10.load(str(tmp_path / "data" / "deep"))
    left = [path.name for path in (tmp_path / "data" / "deep").iterdir()]
    assert left == [".CIFAR-10.lock"]
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(cifar10.CIFAR10, "tgz_md5", md5)
    with pytest.raises(ValueError, match=r"could not be unpacked.*outside"):
        cifar10.load(str(tmp_path / "data" / "deep"))
    assert not list(tmp_path.rglob("climbed"))


def test_svhn(tmp_path, monkeypatch):
    images = noise(4, 3, 32, 32)
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        labels = np.array([[10], [1], [2], [3]], np.uint8)  # ten is how it writes zero
        savemat(path, {"X": images.transpose(2, 3, 1, 0), "y": labels})
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(svhn.SVHN.split_list, split, ["", path.name, md5])
    monkeypatch.setattr(svhn, "VALIDATION", 1)
    splits = svhn.load(str(tmp_path), download=False)
    assert torch.equal(splits.test, torch.from_numpy(images))
    assert len(splits.train) == 3 and len(splits.validation) == 1
    assert splits.labels[2].tolist() == [0, 1, 2, 3]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path} is damaged .*MD5 .*, expected {md5}"):
        svhn.load(str(tmp_path), download=False)


def test_real_mnist(shared_data):
    splits = mnist.load(str(shared_data), download=False)
    sizes = [len(s) for s in (splits.train, splits.validation, splits.test)]
    assert sizes == [55_000, 5_000, 10_000]
    assert splits.train.dtype == torch.uint8 and splits.max_value == 255
    counts = torch.bincount(splits.labels[2]).tolist()  # of each digit, as everybody finds them
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_real_omniglot_is_upright_pixel_for_pixel(shared_data):
    """Against numpy's own column-major order, and a drawing that a person has looked at."""
    splits = omniglot.load(str(shared_data), download=False)
    assert splits.image_shape == (1, 28, 28)
    assert len(splits.train) + len(splits.validation) == 3_630 and len(splits.test) == 1_210
    columns = loadmat(shared_data / "OMNIGLOT" / "chardata.mat")["testdata"]
    upright = np.stack([np.reshape(c, (28, 28), order="F") for c in columns.T])
    assert np.array_equal(splits.test[:, 0].numpy(), np.rint(255 * upright))
    rows = splits.test[21, 0].float().mean(1)  # a U: its bottom is a line, its top two points
    inked = rows[rows > 0]
    assert inked[-3:].max() > 2 * inked[:3].max()


def test_what_another_command_has_fetched_meanwhile_is_not_fetched(tmp_path):
    answers = iter([False, True])  # before the lock, and once it is held

    def never(*_):
        raise AssertionError("fetched")

    remote = [download.Remote("a", ("u",))]
    download.fetch("x", str(tmp_path), True, lambda: next(answers), remote, get=never)
