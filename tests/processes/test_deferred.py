"""Deferred and static steps of several processes are those that are waited for, to the last bit."""

import torch
from torch.utils._pytree import tree_leaves

from tests.commands import environment, forks
from tests.conftest import ROOT


def test_two_processes_defer_the_steps_that_they_would_make(tmp_path):
    script = str(ROOT / "tests" / "processes" / "deferred.py")
    variables = {**environment(tmp_path), "PYTHONPATH": str(ROOT)}
    places = {"folder": str(ROOT), "output": str(tmp_path), "script": script}
    statuses, _ = forks().run(
        arguments=[str(tmp_path / "found.pth")], world=2, environment=variables, **places
    )
    assert statuses == [0, 0], (tmp_path / "errors0.txt").read_text()
    one, *others = torch.load(tmp_path / "found.pth", weights_only=True)
    assert one["progress"]["step"] == 5 and one["progress"]["skipped"] == 2
    assert one["ema"]["n_averaged"] == 3
    assert len(others) == 2
    for other in others:
        for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
