"""Batches: every image once, fixed splits, shares that add up to the global batch."""

import itertools

import pytest
import torch

from datasets.loaders import EvaluationBatches, TrainBatches, normalise
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
