"""With every remedy, neither the processes nor the passes of a batch change what is learned."""

from functools import cache

import pytest
import torch

from model.objective import BalancedNelbo
from tests.commands import environment, forks
from tests.conftest import ROOT
from tests.processes.arms import ARMS, REMEDIES, steps
from utils.processes.launch import Processes
from utils.settings.trust import CONFIGS

SCRIPT = str(ROOT / "tests" / "processes" / "arms.py")
CLOSE = 1e-7  # of float64 weights; the running means are float32


@cache
def alone(arm, passes=1):
    """What one process finds."""
    return steps(arm, passes, Processes())


def furthest(one, other):
    """The largest difference of anything in the model and the objective."""
    assert one.keys() == other.keys()
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def test_these_are_all_remedies():
    assert {path.stem for path in (CONFIGS / "remedy").glob("*.yaml")} == set(REMEDIES)


QUICK = ("balanced", "committed", "aggregate")


@pytest.mark.parametrize(
    "arm", [pytest.param(a, marks=() if a in QUICK else pytest.mark.slow) for a in ARMS]
)
def test_passes_change_nothing(arm):
    distance = furthest(alone(arm), alone(arm, 2))
    print(f"{arm}: 2 passes differ by {distance:.1e}")
    assert distance < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("arm", REMEDIES[1:])
def test_every_remedy_learns_something_else(arm):
    """Else the tests above would be about none alone."""
    own, plain = alone(arm), alone("none")
    shared = [name for name in plain if name in own and own[name].shape == plain[name].shape]
    assert max((own[n].double() - plain[n].double()).abs().max() for n in shared) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("world", "passes"), [(2, 1), (3, 1), (2, 2), (3, 2)])
def test_processes_change_nothing(tmp_path, world, passes):
    file = tmp_path / "weights.pth"
    places = {"folder": str(ROOT), "output": str(tmp_path), "script": SCRIPT}
    variables = {**environment(tmp_path), "PYTHONPATH": str(ROOT)}
    arguments = [str(file), str(passes)]
    statuses, _ = forks().run(arguments=arguments, world=world, environment=variables, **places)
    assert statuses == [0] * world, (tmp_path / "errors0.txt").read_text()
    several = torch.load(file, weights_only=True)
    distances = {arm: furthest(alone(arm), several[arm]) for arm in ARMS}
    print(f"{world} processes, {passes} passes: {max(distances.values()):.1e} at most")
    assert max(distances.values()) < CLOSE, distances


def test_a_batchs_own_balance_would_change_it(monkeypatch):
    """What the tests above would see if layers were weighed by the KL of the pass at hand."""
    plain = BalancedNelbo.forward

    def of_this_pass(self, output, beta):
        self.kl.copy_(output.kl.detach().mean(0))
        self.steps.fill_(1)
        return plain(self, output, beta)

    monkeypatch.setattr(BalancedNelbo, "forward", of_this_pass)
    assert furthest(steps("balanced", 1, Processes()), steps("balanced", 2, Processes())) > 1e-4
