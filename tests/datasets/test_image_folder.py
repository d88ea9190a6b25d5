"""Images of one's own: every kind of file that people have, and those that nobody should have."""

import io
import os
import random
import re
import resource
import struct
import tempfile
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import image_folder
from datasets.io import cache
from datasets.io.decode import Decoder, Unusable
from datasets.io.source import divide
from datasets.splits import SPLITS

GENERATOR = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    """Random bytes."""
    return GENERATOR.integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, pixels: np.ndarray, **options) -> np.ndarray:
    """An image file; its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def write_some(folder: Path, count: int = 40, size: int = 8) -> dict[str, np.ndarray]:
    """Good images of one size, flat in a folder: pixels by name."""
    return {f"{n}.png": write(folder / f"{n}.png", noise(size, size, 3)) for n in range(count)}


def load(root: Path, size: int = 8, channels: int = 3, limit: float = 1, **shares):
    """As `dataset=image_folder` does it."""
    shares = {"validation_share": 0.2, "test_share": 0.2, **shares}
    found = image_folder.load(str(root), size, [channels, size, size])
    return cache.load(found, str(root.parent / "cache"), limit, **shares)


def in_all(splits) -> torch.Tensor:
    """The images of the three splits."""
    return torch.cat([getattr(splits, split) for split in SPLITS])


def as_set(images) -> set[bytes]:
    """The images, whatever their order."""
    return {image.numpy().tobytes() for image in images}


def test_a_flat_folder_of_any_formats_is_read_pixel_for_pixel(tmp_path):
    images = write_some(tmp_path / "all")
    for suffix, options in {"webp": {"lossless": True}, "bmp": {}, "TIFF": {}, "ppm": {}}.items():
        images[suffix] = write(tmp_path / "all" / f"of.{suffix}", noise(8, 8, 3), **options)
    splits = load(tmp_path / "all")
    assert as_set(in_all(splits)) == {i.transpose(2, 0, 1).tobytes() for i in images.values()}
    assert splits.notes == () and splits.labels is None


def test_another_image_moves_none(tmp_path):
    write_some(tmp_path / "all")
    before = load(tmp_path / "all")
    write(tmp_path / "all" / "deep" / "er" / "one.png", noise(8, 8, 3))
    after = load(tmp_path / "all")
    assert sum(len(getattr(after, s)) - len(getattr(before, s)) for s in SPLITS) == 1
    for split in SPLITS:
        assert as_set(getattr(before, split)) <= as_set(getattr(after, split))
    assert len(list((tmp_path / "cache").glob("*.images"))) == 1  # the one before is gone


def test_the_split_belongs_to_the_name_on_every_machine():
    names = [f"{n}.png" for n in range(10_000)]
    found = divide({"all": names}, 0.1, 0.2)
    sizes = [len(found[split]) / 10_000 for split in SPLITS]
    assert sizes == pytest.approx([0.7, 0.1, 0.2], abs=0.01)
    assert [names[index] for _, index in found["validation"]][:4] == [
        "5.png",
        "23.png",
        "27.png",
        "31.png",
    ]
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"  # as Linux and macOS spell a name
    splits = [divide({"all": [name]}, 0.3, 0.3) for name in (composed, decomposed)]
    assert splits[0] == splits[1]
    given = divide({"train": names, "test": names[:50]}, 0.1, 0.2)
    assert given["test"] == [("test", index) for index in range(50)] and given["validation"] == [
        ("train", index) for _, index in found["validation"]
    ]


def test_subfolders_divide_and_folders_within_are_classes(tmp_path):
    sizes = {"train/cat": 7, "train/dog": 5, "validation/cat": 2, "test/dog": 3}
    for folder, count in sizes.items():
        write_some(tmp_path / "all" / folder, count)
    (tmp_path / "all" / "README.md").write_text("beside")
    splits = load(tmp_path / "all")
    assert [len(getattr(splits, split)) for split in SPLITS] == [12, 2, 3]
    assert splits.classes == ("cat", "dog")
    assert [labels.bincount(minlength=2).tolist() for labels in splits.labels] == [
        [7, 5],
        [2, 0],
        [0, 3],
    ]
    assert splits.notes == ("1 passed over, beside train/ and test/",)


def test_centre_crop_and_size(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the centred square; around it is black
    splits = write(tmp_path / "wide.png", wide)
    found = Decoder(3, 10)(tmp_path / "wide.png")
    assert found.shape == (3, 10, 10) and (found == 200).all()
    tall = write(tmp_path / "tall.png", splits.transpose(1, 0, 2))
    assert (Decoder(1, 5)(tmp_path / "tall.png") == 200).all() and tall.shape == (60, 20, 3)


def test_grey_16_bits_palette_cmyk_transparency_animation_and_orientation(tmp_path):
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    Image.fromarray(levels).save(tmp_path / "16.png")
    assert np.array_equal(Decoder(1, 8)(tmp_path / "16.png")[0], levels >> 8)
    colours = noise(8, 8, 3)
    image = Image.fromarray(colours)
    palette = image.quantize(256)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(Decoder(3, 8)(tmp_path / "palette.png"), np.moveaxis(colours, 2, 0))
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # red
    flat.save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(Decoder(3, 8)(tmp_path / "cmyk.jpg")[:, 4, 4] - [254.0, 0, 0]).max() < 3
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    clear.save(tmp_path / "clear.png")
    assert (Decoder(3, 8)(tmp_path / "clear.png") == 255).all()
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (200, 100, 0)]
    frames[0].save(tmp_path / "moves.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert (Decoder(3, 8)(tmp_path / "moves.webp")[0] == 200).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned
    image.save(tmp_path / "turned.png", exif=exif)
    turned = np.rot90(colours, -1)
    assert np.array_equal(Decoder(3, 8)(tmp_path / "turned.png"), np.moveaxis(turned, 2, 0))
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "floats.tiff")
    with pytest.raises(Unusable, match="floating-point"):
        Decoder(3, 8)(tmp_path / "floats.tiff")


def enormous(path: Path, side: int = 20_000) -> None:
    """A PNG of side × side pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">2I5B", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def test_what_cannot_be_used_is_passed_over_and_counted(tmp_path):
    root = tmp_path / "all"
    good = write_some(root)
    photo = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(photo, "JPEG")
    (root / "truncated.jpg").write_bytes(photo.getvalue()[:700])
    (root / "text.png").write_text("not an image")
    (root / "empty.png").write_bytes(b"")
    (root / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    enormous(root / "enormous.png")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_text("of a file manager")
    os.mkfifo(root / "pipe.png")  # reading it would wait for ever
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "itself.png").symlink_to("itself.png")
    (root / "loop").symlink_to(root)
    splits = load(root)
    assert as_set(in_all(splits)) == {i.transpose(2, 0, 1).tobytes() for i in good.values()}
    told = sorted(re.sub(r" \(\d+ bytes.*?\)", "", note) for note in splits.notes)
    assert told == [
        "1 passed over, a folder: a link to one that is in already",
        "1 passed over, a link: No such file or directory",
        "1 passed over, a link: Too many levels of symbolic links",
        "1 passed over, damaged: truncated.jpg (image file is truncated)",
        "1 passed over, more than 80,000,000 pixels: enormous.png",
        "1 passed over, not a regular file",
        "2 passed over, not named as an image",
        "3 passed over, no image, whatever the name says: empty.png, script.png, text.png",
    ]
    assert load(root).notes == splits.notes  # told at every start


@pytest.mark.filterwarnings("ignore:::PIL")
def test_files_that_were_harmed_anywhere_end_nothing(tmp_path):
    """Each is decoded, or refused in a few words."""
    rng, refused = random.Random(0), 0
    sources = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        buffer = io.BytesIO()
        Image.fromarray(noise(16, 16, 3)).save(buffer, kind)
        sources.append(buffer.getvalue())
    for _ in range(300):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            found = Decoder(3, 8)(io.BytesIO(data[: rng.randint(1, 2 * len(data))]))
            assert found.shape == (3, 8, 8) and found.dtype == np.uint8
        except Unusable as error:
            refused += 1
            assert 0 < len(str(error)) < 100
    assert 30 < refused < 300


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody to read as")
def test_files_and_folders_that_may_not_be_read(tmp_path):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "all")
        write_some(root, 30)
        (root / "0.png").chmod(0)
        write_some(root / "closed", 3)
        (root / "closed").chmod(0)
        Path(folder).chmod(0o777)
        os.seteuid(65534)
        try:
            splits = load(root)
        finally:
            os.seteuid(0)
    assert len(in_all(splits)) == 29
    assert set(splits.notes) == {
        "1 passed over, a folder: Permission denied",
        "1 passed over, no permission to read: 0.png",
    }


def test_folders_with_nothing_or_too_little(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"empty has no images that can be read: set dataset.root"):
        load(empty)
    (empty / "a.png").write_text("text")
    with pytest.raises(ValueError, match=r"no images that can be read \(1 passed over, no image"):
        load(empty)
    one = tmp_path / "one"
    write_some(one, 1)
    with pytest.raises(ValueError, match=r"The 1 image.* leave none for \w+: use more"):
        load(one)
    with pytest.raises(ValueError, match=r"leave none for validation.*validation_share"):
        load(tmp_path / "one", validation_share=0.0, test_share=0.0)
    with pytest.raises(ValueError, match="is not there: name a folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "some.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"some.zip is a file.*archive must be unpacked"):
        load(tmp_path / "some.zip")
    assert not list((tmp_path / "cache").glob("*.images"))


@pytest.mark.parametrize("shape", [(30, 8, 8, 3), (30, 3, 8, 8), (30, 8, 8), (30, 8, 8, 1)])
def test_arrays(tmp_path, shape):
    images = noise(*shape)
    np.save(tmp_path / "some.npy", images)
    channels = 3 if 3 in shape else 1
    expected = images.reshape(30, 1, 8, 8) if channels == 1 else images
    expected = expected.transpose(0, 3, 1, 2) if shape[-1] == 3 else expected
    splits = load(tmp_path / "some.npy", channels=channels)
    assert as_set(in_all(splits)) == {i.tobytes() for i in np.ascontiguousarray(expected)}
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(30) % 3)
    splits = load(tmp_path / "some.npz", channels=channels)
    assert as_set(in_all(splits)) == {i.tobytes() for i in np.ascontiguousarray(expected)}
    assert torch.cat(splits.labels).bincount().tolist() == [10, 10, 10]
    np.savez_compressed(tmp_path / "both.npz", train=images[:20], test=images[20:])
    splits = load(tmp_path / "both.npz", size=4, channels=3)
    assert len(splits.test) == 10 and splits.image_shape == (3, 4, 4)


def test_arrays_that_are_not_images(tmp_path):
    path = tmp_path / "some.npy"
    for wrong in (
        np.ones((4, 8, 8), np.float32),
        noise(4, 8),
        noise(4, 5, 8, 8),
        noise(0, 8, 8),
        np.asfortranarray(noise(4, 8, 8)),
        np.array([{}], object),
    ):
        np.save(path, wrong)
        with pytest.raises(ValueError, match=r"some.npy holds no images \(.*\): save uint8"):
            load(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="holds no images"):
        load(path)
    header = io.BytesIO()
    claims = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 64, 64)}
    np.lib.format.write_array_header_1_0(header, claims)
    path.write_bytes(header.getvalue() + bytes(100))  # four terabytes, it says
    with pytest.raises(ValueError, match="holds no images"):
        load(path)
    archive = tmp_path / "some.npz"
    np.savez(archive, a=noise(4, 8, 8), b=noise(4, 8, 8))
    with pytest.raises(ValueError, match="several arrays, a, b, and none named images"):
        load(archive)
    np.savez(archive, images=noise(4, 8, 8), labels=np.arange(3))
    with pytest.raises(ValueError, match="another number of labels"):
        load(archive)
    np.savez(archive, images=noise(4, 8, 8), labels=np.array([0, -1, 2, 1]))
    with pytest.raises(ValueError, match="labels under 0"):
        load(archive)
    np.savez(archive, images=noise(4, 8, 8), labels=np.array([0, 2**40, 2, 1]))
    with pytest.raises(ValueError, match="labels of 100,000 and more"):
        load(archive)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match="holds no images"):
        load(archive)


def test_a_large_set_stays_on_the_disk_and_is_the_same(tmp_path):
    write_some(tmp_path / "all", 200)
    kept, stored = load(tmp_path / "all"), load(tmp_path / "all", limit=0)
    for split in SPLITS:
        one, other = getattr(kept, split), getattr(stored, split)
        assert isinstance(one, torch.Tensor) and not isinstance(other, torch.Tensor)
        assert one.shape == other.shape and len(one) == len(other)
        indices = torch.randperm(len(one))
        assert torch.equal(one[indices], other[indices])
        assert torch.equal(one, torch.cat(list(other.to("cpu").split(7))))
        assert torch.equal(one[2:5], other[2:5][torch.arange(3)])
        assert torch.equal(one[3:][1:4], other[3:][1:4][torch.arange(3)]) and len(other[:0]) == 0


def test_a_stored_file_that_is_cut_while_it_is_read_is_told(tmp_path):
    write_some(tmp_path / "all")
    images = load(tmp_path / "all", limit=0).train
    [path] = (tmp_path / "cache").glob("*.images")
    os.truncate(path, 3 * 8 * 8 * 2)
    with pytest.raises(OSError, match=r"\.images is shorter than it was"):
        images[torch.tensor([0, 2])]


def test_a_stored_file_that_was_harmed_is_made_anew(tmp_path):
    write_some(tmp_path / "all")
    splits = load(tmp_path / "all")
    [path] = (tmp_path / "cache").glob("*.images")
    content = path.read_bytes()
    for limit in (0, 1):
        for wrong in (content[:-1], bytes([content[0] ^ 1]) + content[1:], None):
            path.unlink() if wrong is None else path.write_bytes(wrong)
            found = load(tmp_path / "all", limit=limit)
            assert path.read_bytes() == content and len(found.train) == len(splits.train)
    path.with_suffix(".json").write_text("{")
    load(tmp_path / "all")
    assert not list((tmp_path / "cache").glob("*.part"))


def test_images_that_change_are_read_again(tmp_path):
    write_some(tmp_path / "all")
    load(tmp_path / "all")
    new = write(tmp_path / "all" / "3.png", noise(8, 8, 3))
    assert new.transpose(2, 0, 1).tobytes() in as_set(in_all(load(tmp_path / "all")))


def test_processes_that_start_together_make_it_once(tmp_path, monkeypatch):
    write_some(tmp_path / "all", 60)
    written, write = [], cache._write

    def counted(*arguments):
        written.append(1)
        write(*arguments)

    monkeypatch.setattr(cache, "_write", counted)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(load(tmp_path / "all"))) for _ in "1234"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1 and len(found) == 4


def test_what_others_put_in_its_place_is_not_written_through(tmp_path):
    write_some(tmp_path / "all")
    load(tmp_path / "all")
    precious, (made,) = tmp_path / "precious", (tmp_path / "cache").glob("*.images")
    precious.write_text("precious")
    before = made.read_bytes()
    for suffix in (".part", ".images", ".json"):
        made.with_suffix(suffix).unlink(missing_ok=True)
        made.with_suffix(suffix).symlink_to(precious)
    load(tmp_path / "all")
    assert made.read_bytes() == before and not made.is_symlink()
    assert precious.read_text() == "precious"
    made.unlink()
    (lock,) = (tmp_path / "cache").glob("*.lock")
    lock.unlink()
    lock.symlink_to(precious)
    with pytest.raises(ValueError, match=r"dataset.cache=.*symbolic link"):
        load(tmp_path / "all")
    assert precious.read_text() == "precious"


def test_a_disk_that_fills_while_it_is_written(tmp_path):
    write_some(tmp_path / "all")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # bytes per file
    try:
        with pytest.raises(ValueError, match=r"dataset.cache=.*\(File too large\): make room"):
            load(tmp_path / "all")
        assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    load(tmp_path / "all")


def test_no_room_or_no_permission_for_the_stored_file(tmp_path, monkeypatch):
    write_some(tmp_path / "all")
    (tmp_path / "cache").write_text("a file, no folder")
    with pytest.raises(ValueError, match=r"could not be stored in dataset.cache=.*make room"):
        load(tmp_path / "all")
    (tmp_path / "cache").unlink()
    usage = cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(ValueError, match=r"take 0.0 GB, of which dataset.cache=.*make room"):
        load(tmp_path / "all")
    assert not list((tmp_path / "cache").glob("*.images"))
