"""Several processes compute what one does."""

import pytest
import torch

from tests.commands import environment, forks
from tests.conftest import ROOT
from tests.processes.several import COUNTS

MORE = [pytest.param(3, 1, marks=pytest.mark.slow), pytest.param(2, 2, marks=pytest.mark.slow)]
SCRIPT = str(ROOT / "tests" / "processes" / "several.py")


def train(folder, world, passes=1, past=False):
    """The averaged weights after five steps in float64, and an evaluation's figures."""
    file = folder / f"{world}-{passes}-{past}.pth"
    places = {"folder": str(ROOT), "output": str(folder), "script": SCRIPT}
    variables = {**environment(folder), "PYTHONPATH": str(ROOT)}
    arguments = [str(file), str(passes), str(past)]
    statuses, _ = forks().run(arguments=arguments, world=world, environment=variables, **places)
    assert statuses == [0] * world, (folder / "errors0.txt").read_text()
    return torch.load(file, weights_only=True)


def furthest(one, other):
    """The largest difference of any weight."""
    pairs = ((one["weights"][name], other["weights"][name]) for name in one["weights"])
    return max((a.double() - b.double()).abs().max().item() for a, b in pairs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds."""
    return train(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.parametrize(("world", "passes"), [(2, 1), *MORE])
def test_the_same_weights_and_figures_as_one(tmp_path, alone, world, passes):
    """Dropout, sampling noise and flips belong to an image and a step, not to a process."""
    several = train(tmp_path, world, passes)
    distance = furthest(alone, several)
    print(f"{world} processes, {passes} passes: parameters differ by {distance:.1e}")
    assert distance < 1e-6
    torch.testing.assert_close(several["sums"], alone["sums"], rtol=1e-6, atol=0)
    assert not several["differing"]  # so that each may go on from another's checkpoint
    for count in COUNTS:
        key = f"figures of {count}"
        assert several[key] == pytest.approx(alone[key], rel=1e-6, abs=1e-6)
        key = f"per image of {count}"
        assert torch.allclose(several[key], alone[key], rtol=1e-6)


@pytest.mark.slow
def test_a_loss_past_the_wrapper_gives_others(tmp_path, alone):
    """What the test above would see if gradients were not averaged."""
    assert furthest(alone, train(tmp_path, 2, past=True)) > 1e-4
