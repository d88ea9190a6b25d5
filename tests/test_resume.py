"""A run killed at any moment and started again ends bit for bit as one that was left alone."""

import hashlib
import json
import random
import subprocess
import sys

import pytest
import torch

from tests.commands import PLAIN, QUIET, SMALL, environment, metrics, only_run
from tests.conftest import ROOT

STEPS = 30
THREE = ["train.max_epochs=3", "dataset.data_module.batch_size=130"]  # of 1,300 images
THREE += ["train.eval_freq=9", "task.estimators=[]"]
CHANGING = ["train.ema_rate=0.9", "model.warmup=2"]  # state that an epoch or a step changes
DCT = ["experiment=digits_dct_ladder", *SMALL, *QUIET, *THREE, *CHANGING]
DCT += ["model.decoder.z_L_prior.t_sample=loss_aware", "train.checkpoint_every=4 steps"]
LADDER = [*PLAIN, *QUIET, *THREE, "train.checkpoint_every=1 step", "train/scheduler=plateau"]


def run_all(cases, folder):
    """Statuses and seconds of each case, by forks of one process."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.killed"],
        input=json.dumps(cases),
        cwd=ROOT,
        env={**environment(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def digests(value, name=""):
    """SHA-256 of every tensor in a checkpoint by its place, and all else as it is."""
    if isinstance(value, torch.Tensor):
        return {name: hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()}
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, part in items for k, v in digests(part, f"{name}.{key}").items()}
    return {name: value}


def all_of(folder):
    """Everything a run has come to, without what a clock or chance decides."""
    run = only_run(folder)
    found = {"scores": json.loads((run / "results.json").read_text())["bound"]}
    found["metrics"] = metrics(run)
    for name in ("last", "best"):
        content = torch.load(run / "checkpoints" / f"{name}.pth", weights_only=True)
        found |= digests(content, name)
    return {k: v for k, v in found.items() if not k.endswith((".wandb_id", "progress.seconds"))}


def case(folder, arguments, world=1, kill=None):
    folder.mkdir(exist_ok=True)
    return {"folder": str(folder), "arguments": arguments, "world": world, "kill": kill}


def check_kills(tmp_path, arguments, world, steps):
    """Killed once at each of these steps, at a random moment of it; then the same command."""
    chance = random.Random(world)
    folders = {step: tmp_path / f"killed{step}" for step in steps}
    cases = [case(tmp_path / "whole", arguments, world)]
    for step, folder in folders.items():
        kill = [chance.randrange(world), step, chance.uniform(0, 0.05)]
        cases += [case(folder, arguments, world, kill), case(folder, arguments, world)]
    (*finished, _), *ends = run_all(cases, tmp_path)
    assert finished == [0] * world, (tmp_path / "whole" / "output0.txt").read_text()
    whole = all_of(tmp_path / "whole")
    assert len(whole["metrics"]) == 3 and len(whole) > 200
    killed, again = ends[::2], ends[1::2]
    for (step, folder), statuses, (*resumed, _) in zip(folders.items(), killed, again, strict=True):
        text = (folder / "output0.txt").read_text()
        assert -9 in statuses[:-1] and 0 not in statuses[:-1], (step, text)
        assert statuses[-1] < 30, f"step {step}: {statuses[-1]} s from the kill to the end of all"
        assert resumed == [0] * world, (step, text)
        assert "continuing at epoch" in text or step <= 8  # the first may not be written yet
        assert all_of(folder) == whole, step


def test_killed_in_a_step_it_ends_as_if_never_stopped(tmp_path):
    check_kills(tmp_path, LADDER, 1, [11])


@pytest.mark.slow
def test_killed_in_some_steps_a_plain_ladder_ends_as_if_never_stopped(tmp_path):
    check_kills(tmp_path, LADDER, 1, range(2, STEPS + 1, 4))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("world", "arguments"), [(1, DCT), (2, DCT)])
def test_killed_at_every_step_it_ends_as_if_never_stopped(tmp_path, world, arguments):
    check_kills(tmp_path, arguments, world, range(1, STEPS + 1))
