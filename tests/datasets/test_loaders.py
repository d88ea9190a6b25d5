"""Batches: every image once, fixed splits, shares that add up to the global batch."""

import itertools
import os
import threading

import pytest
import torch

from datasets.io.on_disk import ImagesOnDisk
from datasets.loaders import (
    EvaluationBatches,
    TrainBatches,
    evenly_spaced,
    few_of,
    normalise,
)
from datasets.splits import hold_out

IMAGES = torch.arange(103, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def batches(**changes) -> TrainBatches:
    """Training batches of 12 over 103 recognisable images."""
    settings = {"images": IMAGES, "max_value": 255, "batch_size": 12, "seed": 1}
    return TrainBatches(**{**settings, **changes})


def ids(steps) -> list[list[int]]:
    """The images of each step."""
    return [torch.cat([b.ids for b in step]).tolist() for step in steps]


def test_normalise():
    x = normalise(torch.tensor([0, 8, 16], dtype=torch.uint8).view(1, 3, 1, 1), 16)
    assert x.flatten().tolist() == [-1, 0, 1]
    assert x.is_contiguous(memory_format=torch.channels_last)


def test_an_epoch_has_every_image_at_most_once_and_another_order_each_time():
    train = batches()
    first, second = ids(train.epoch(0)), ids(train.epoch(1))
    assert len(first) == len(train) == 8
    flat = list(itertools.chain(*first))
    assert len(set(flat)) == 96 and first != second
    assert first == ids(train.epoch(0)) and first != ids(batches(seed=2).epoch(0))
    assert ids(train.epoch(0, start=5)) == first[5:]


def test_images_and_ids_belong_together():
    for step in batches().epoch(3):
        for batch in step:
            torch.testing.assert_close(batch.x[:, 0, 0, 0], batch.ids / 127.5 - 1)


@pytest.mark.parametrize(("world", "micro_batches"), [(1, 3), (3, 1), (2, 2)])
def test_shares_add_up_to_the_global_batch(world, micro_batches):
    whole = ids(batches().epoch(0))
    parts = [batches(rank=r, world=world, micro_batches=micro_batches) for r in range(world)]
    shares = [ids(part.epoch(0)) for part in parts]
    for step, expected in enumerate(whole):
        assert sorted(itertools.chain(*(share[step] for share in shares))) == sorted(expected)


def test_flips_follow_the_seed_and_epoch_and_only_happen_in_training():
    images = torch.arange(4, dtype=torch.uint8).view(1, 1, 1, 4).expand(50, 1, 4, 4).contiguous()
    settings = {"images": images, "batch_size": 50, "max_value": 3, "horizontal_flip": True}
    runs = [torch.cat([b.x for s in batches(**settings).epoch(e) for b in s]) for e in (0, 0, 1)]
    flipped = runs[0][:, 0, 0, 0] == 1
    assert 10 < flipped.sum() < 40
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    held_out = torch.cat([b.x for b in EvaluationBatches(images, 3, 7)])
    assert (held_out[:, 0, 0, 0] == -1).all()


@pytest.mark.parametrize("world", [1, 3, 4])
def test_evaluation_shards_hold_every_image_exactly_once(world):
    images = torch.zeros(10_001, 1, 1, 1, dtype=torch.uint8)
    seen = [b.ids for r in range(world) for b in EvaluationBatches(images, 255, 64, r, world)]
    assert torch.cat(seen).sort().values.tolist() == list(range(10_001))


@pytest.fixture
def on_disk(tmp_path):
    """IMAGES in a file, after three other bytes."""
    (tmp_path / "images").write_bytes(b"abc" + IMAGES.numpy().tobytes())
    return ImagesOnDisk(tmp_path / "images", 3, tuple(IMAGES.shape))


def test_batches_from_the_disk_are_those_from_memory(on_disk):
    for settings in ({"horizontal_flip": True}, {"rank": 1, "world": 2, "micro_batches": 3}):
        kept, read = batches(**settings), batches(images=on_disk, **settings)
        for start in (0, 5, len(kept)):
            for one, other in zip(kept.epoch(2, start), read.epoch(2, start), strict=True):
                for a, b in zip(one, other, strict=True):
                    assert torch.equal(a.x, b.x) and torch.equal(a.ids, b.ids)
    for rank in range(2):
        pair = (EvaluationBatches(images, 255, 7, rank, 2) for images in (IMAGES, on_disk))
        for a, b in zip(*pair, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.ids, b.ids)


def test_one_batch_is_read_ahead_and_no_more(on_disk, monkeypatch):
    read, two = [], threading.Event()
    whole = ImagesOnDisk._read

    def noted(self, indices, images):
        read.append(indices)
        if len(read) == 2:
            two.set()
        return whole(self, indices, images)

    monkeypatch.setattr(ImagesOnDisk, "_read", noted)
    epoch = batches(images=on_disk).epoch(0)
    next(epoch)
    assert two.wait(10)  # while the first one is used
    next(epoch)
    threads = threading.active_count()
    epoch.close()  # as where a run is interrupted
    assert len(read) == 3 and threading.active_count() == threads - 1


def test_a_file_that_is_cut_while_it_is_read_ahead_is_told(on_disk, tmp_path):
    epoch = batches(images=on_disk).epoch(0)
    next(epoch)
    os.truncate(tmp_path / "images", 40)
    with pytest.raises(OSError, match="images is shorter than it was"):
        list(epoch)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"batch_size=12.*cannot be divided over 5"):
        batches(world=5)
    with pytest.raises(ValueError, match="batch_size=104 is more than the 103"):
        batches(batch_size=104)
    with pytest.raises(ValueError, match="No images"):
        EvaluationBatches(IMAGES[:0], 255, 4)


def test_the_validation_split_is_fixed():
    train, validation = hold_out(IMAGES, 20)
    assert len(train) == 83 and len(validation) == 20
    found = validation[:, 0, 0, 0].tolist()
    torch.manual_seed(5)
    assert hold_out(IMAGES, 20)[1][:, 0, 0, 0].tolist() == found
    assert not set(found) & set(train[:, 0, 0, 0].tolist())
    assert found[:5] == [0, 5, 13, 17, 18]  # this split is part of every published number
    with pytest.raises(ValueError, match="Only 20 training images"):
        hold_out(IMAGES[:20], 20)


def test_evenly_spaced_images_are_of_all_classes():
    """Folders of images are sorted by class, of which the first images would be one."""
    labels = torch.arange(1000) // 100
    assert torch.bincount(labels[evenly_spaced(1000, 50)]).tolist() == [5] * 10
    assert evenly_spaced(7, 100).tolist() == list(range(7)) and len(evenly_spaced(0, 5)) == 0
    assert len(evenly_spaced(1000, 999).unique()) == 999


def test_examples_are_of_all_classes():
    mixed, classes = torch.arange(100) % 10, torch.arange(100) // 10
    for labels, expected in ((None, 0), (mixed, 0), (classes, 10)):
        found = EvaluationBatches(IMAGES[:100], 255, 64, labels=labels).examples(5)
        ids = torch.arange(5) * (2 * expected or 1)
        assert torch.equal(found, normalise(IMAGES[ids], 255))
    assert few_of(100, 5, classes).tolist() == [0, 20, 40, 60, 80]
    assert few_of(100, 5, mixed) == slice(5)  # still on the disk, where it was
