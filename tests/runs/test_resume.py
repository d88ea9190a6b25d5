"""A run killed at any moment and started again ends bit for bit as one that was left alone."""

import hashlib
import json
import random

import pytest
import torch

from tests.commands import PLAIN, QUIET, SMALL, environment, forks, metrics, only_run

STEPS = 30
THREE = ["train.max_epochs=3", "dataset.data_module.batch_size=130"]  # of 1,300 images
THREE += ["train.eval_freq=9", "task.estimators=[]"]
# State that an epoch or a step changes.
CHANGING = ["train.ema_rate=0.9", "model.beta_start=0", "model.warmup=2"]
DCT = ["experiment=digits_dct_ladder", *SMALL, *QUIET, *THREE, *CHANGING]
DCT += ["model.decoder.z_L_prior.t_sample=loss_aware", "train.checkpoint_every=4 steps"]
LADDER = [*PLAIN, *QUIET, *THREE, "train.checkpoint_every=1 step", "train/scheduler=plateau"]


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


def run(folder, arguments, world, fault=None):
    """Statuses of the command's processes, seconds between their ends, what the main one said."""
    folder.mkdir(exist_ok=True)
    places = {"folder": str(folder), "output": str(folder), "environment": environment(folder)}
    statuses, seconds = forks().run(arguments=arguments, world=world, fault=fault, **places)
    text = (folder / "output0.txt").read_text() + (folder / "errors0.txt").read_text()
    return statuses, seconds, text


def check_kills(tmp_path, arguments, world, steps):
    """Killed once at each of these steps, at a random moment of it; then the same command."""
    chance, good = random.Random(world), [0] * world
    statuses, _, text = run(tmp_path / "whole", arguments, world)
    assert statuses == good, text
    whole = all_of(tmp_path / "whole")
    assert len(whole["metrics"]) == 3 and len(whole) > 200
    for step in steps:
        folder, rank = tmp_path / f"killed{step}", chance.randrange(world)
        kill = [rank, step, "kill", chance.uniform(0, 0.05)]
        statuses, seconds, text = run(folder, arguments, world, kill)
        assert -9 in statuses and 0 not in statuses, (step, text)
        assert seconds < 30, f"step {step}: {seconds} s from the kill to the end of all"
        statuses, _, text = run(folder, arguments, world)
        assert statuses == good, (step, text)
        assert "continuing at epoch" in text or step <= 8  # the first may not be written yet
        assert all_of(folder) == whole, step


@pytest.mark.slow
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
