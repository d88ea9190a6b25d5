"""The processes of a run have the same settings, code and data, or one sentence says who hasn't."""

import contextlib
import json
import shutil

import numpy as np
import pytest
import torch

from tests.commands import OWN_DATA, environment, forks, only_run
from tests.processes.test_failures import run, slow
from utils import version

ADVICE = "start all processes with the same command, code and data.\n"
FREE = ["train.grace_seconds=5", "train.stuck_minutes=5", "train.threads=1", "wandb.tags=[one]"]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (["train.seed=1"], "train.seed is 1 in process 1 but 123 in process 0"),
        slow(["task.mi_images=7"], "task.mi_images is 7 in process 1 but "),
        slow(["train/scheduler=plateau"], "train.scheduler."),
        slow(["train.log_every=7"], "train.log_every is 7 in process 1 but 10 in process 0"),
        slow(
            ["+train.optimizer.amsgrad=true"],
            "train.optimizer.amsgrad is true in process 1 but null",
        ),
    ],
)
def test_other_settings_are_refused(tmp_path, own, told):
    statuses, _, output, errors = run(tmp_path, 2, None, own={"1": own})
    assert statuses == [1, 1] and output == "" and not (tmp_path / "runs").exists()
    assert errors.startswith(f"Error in process 1: {told}") and errors.endswith(ADVICE)
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_what_a_machine_decides_may_differ(tmp_path):
    statuses, *_, errors = run(tmp_path, 2, None, "train.max_epochs=1", own={"1": FREE})
    assert statuses == [0, 0] and errors == ""


@pytest.mark.slow
def test_a_setting_that_an_interpolation_makes_another_is_refused(tmp_path):
    statuses, *_, errors = run(tmp_path, 2, None, "name=of_${oc.env:RANK}")
    assert statuses == [1, 1] and 'name is "of_1" in process 1 but "of_0" in process 0' in errors


@pytest.mark.slow
def test_other_images_are_refused(tmp_path):
    """In all splits; those of the same number too."""
    images = np.random.default_rng(0).integers(0, 255, (400, 8, 8)).astype(np.uint8)
    parts = {"train": images[:300], "validation": images[300:350], "test": images[350:]}
    own = {}
    for rank, split in enumerate((None, *parts)):
        changed = {**parts, split: parts[split][::-1]} if split else parts
        (tmp_path / f"{rank}").mkdir()
        np.savez(tmp_path / f"{rank}" / "digits.npz", **changed)
        own[str(rank)] = [f"dataset.root={tmp_path / str(rank) / 'digits.npz'}"]
    more = ["dataset=image_folder", "dataset._target_=datasets.image_folder.load"]
    more += ["dataset.size=8", "dataset.channels=1", f"dataset.cache={tmp_path}"]
    statuses, *_, errors = run(tmp_path, 4, None, *more, own=own)
    assert 0 not in statuses and errors.count("\n") == 1
    assert " images is " in errors and errors.endswith(ADVICE)


@contextlib.contextmanager
def changed(run):
    """The content of a run's best checkpoint, to be changed."""
    path = run / "checkpoints" / "best.pth"
    content = torch.load(path, weights_only=True)
    yield content
    torch.save(content, path)
    (path.parent / "manifest.json").unlink()


@pytest.mark.slow
def test_another_checkpoint_is_refused(trained, tmp_path):
    """Under the same name, as on machines that do not share a folder."""
    source = only_run(trained[0])
    for rank in "01":
        shutil.copytree(source / "checkpoints", tmp_path / rank / "checkpoints")
    with changed(tmp_path / "1") as content:
        content["model"]["encoder.stem.bias"][0] += 1
    own = {rank: [f"checkpoint={tmp_path / rank / 'checkpoints' / 'best.pth'}"] for rank in "01"}
    case = {"environment": environment(tmp_path), "own": own, "world": 2}
    case |= {"folder": str(tmp_path), "output": str(tmp_path)}
    statuses, _ = forks().run(arguments=["task=test", OWN_DATA], **case)
    errors = "".join((tmp_path / f"errors{rank}.txt").read_text() for rank in "01")
    assert statuses == [1, 1] and errors.startswith("Error in process 1: checkpoint is ")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "images"), [("test", 2), ("report", 1), ("compare", 1)])
def test_fewer_images_than_processes_have_the_same_scores(trained, tmp_path, task, images):
    source, found = only_run(trained[0]), []
    for world in (1, 4):
        folder = tmp_path / str(world)
        runs = [shutil.copytree(source, folder / name) for name in ("one", "other")]
        with changed(runs[1]) as content:
            content["config"]["train"]["seed"] = 7
        named = f"runs=[{runs[0]},{runs[1]}]" if task == "compare" else f"checkpoint={runs[0]}"
        more = [OWN_DATA, f"task={task}", f"task.num_images={images}", "task.output=output", named]
        case = {"folder": str(folder), "output": str(folder), "environment": environment(tmp_path)}
        statuses, _ = forks().run(arguments=[*more, "task.estimators=[iwae]"], world=world, **case)
        assert statuses == [0] * world, (folder / "errors0.txt").read_text()
        (score,) = [*folder.glob("output/*scores.json"), *folder.glob("one/test_scores.json")]
        record = json.loads(score.read_text())
        found.append(flat([record["bound"], record["likelihoods"]]))
    assert found[0] == pytest.approx(found[1], rel=1e-6, abs=1e-9) and len(found[0]) > 50


def flat(value) -> list[float]:
    """All numbers in nested containers."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in flat(part)]
    return [value] if isinstance(value, (int, float)) else []


def test_the_digest_of_the_code_is_of_every_file(tmp_path, monkeypatch):
    monkeypatch.setattr(version, "ROOT", tmp_path)
    found = {version.source_digest()}
    for name in ("run_experiment.py", "model/a.py", "utils/b/c.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        for text in ("1", "2"):
            (tmp_path / name).write_text(text)
            found.add(version.source_digest())
    assert len(found) == 7
    (tmp_path / "notes.txt").write_text("1")
    assert version.source_digest() in found
