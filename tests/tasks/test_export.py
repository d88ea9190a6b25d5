"""An exported folder holds all that using the model takes, and is trusted no more than a file."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from tests.commands import OWN_DATA, QUIET, SMALL, call, environment, only_run
from tests.conftest import ROOT
from tests.conftest import compose as composed
from tests.evaluation.test_record import FULL
from utils.checkpoint import load_model
from utils.errors import ConfigError
from utils.evaluation.compared_runs import cached_run, read_run
from utils.files import sha256, write_arrays, write_json
from utils.processes.launch import Processes
from utils.runs.exported import CONFIG, WEIGHTS
from utils.settings.check import check, check_task
from utils.settings.command_line import Command
from utils.settings.composition import compose
from utils.settings.identity import leaves
from utils.tasks.export import _without_folders, _write, export, public_settings
from utils.tasks.trained import Trained


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A trained run's best model, exported."""
    output = tmp_path_factory.mktemp("exported") / "digits"
    run = only_run(trained[0])
    call(trained[0], "task=export", f"checkpoint={run}", OWN_DATA, f"task.output={output}")
    return output


def test_its_checkpoint_is_read_once(saved, tmp_path, monkeypatch):
    """With the model: the scores are not made here, and the progress is known."""
    path, _ = saved
    overrides = (f"checkpoint={path}", "task=export", f"task.output={tmp_path / 'out'}")
    trained = Trained.named(Command(compose(list(overrides)), overrides), Processes())
    scores = write_json(tmp_path / "scores.json", FULL)
    write_arrays(tmp_path / "scores.npz", {"nelbo": np.zeros(1)})
    monkeypatch.setattr("utils.checkpoint.content", None)
    _write(trained, scores, tmp_path / "out")
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["progress"]["epoch"] == 2


def test_it_gives_the_scores_of_the_run_elsewhere(trained, folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    call(tmp_path, "task=test", f"checkpoint={moved}", OWN_DATA)
    found = json.loads((tmp_path / "runs" / "moved" / "test_scores.json").read_text())
    first = json.loads((only_run(trained[0]) / "results.json").read_text())
    assert found["likelihoods"] == first["likelihoods"] and found["bound"] == first["bound"]
    shared = json.loads((folder / "results.json").read_text())
    assert shared["bound"] == first["bound"] and (folder / "report" / "report.html").exists()
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["config"] == shared["config"] and report["checkpoint"] == WEIGHTS
    for path in folder.rglob("*"):  # no place of this machine is named
        assert path.is_dir() or str(trained[0]).encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_it_is_a_checkpoint_like_any(folder, tmp_path):
    small = [*SMALL, *QUIET, "train.max_epochs=1", "task.estimators=[]"]
    start = ["experiment=digits_dct_ladder", *small, f"train.init_from={folder}"]
    call(tmp_path, *start)
    run = only_run(tmp_path)
    output = tmp_path / "compared"
    few = ["task.num_images=20", "model.is_k=2", OWN_DATA, f"task.output={output}"]
    call(tmp_path, "task=compare", f"runs=[{folder},{run}]", *few)
    assert (output / "compare.html").exists()


def test_its_own_scores_are_compared(trained, folder, tmp_path):
    """They are those of its weights; of other weights, or asked otherwise, they are made anew."""
    task = {"name": "compare", "split": "test", "num_images": None, "estimators": ["iwae"]}
    asked = check_task({**task, "noise_seed": 0, "output": None})
    found = cached_run(str(folder), asked, str(tmp_path), ())
    first = read_run(only_run(trained[0]) / "results.json")
    assert found.record.bound == first.record.bound
    assert np.array_equal(found.per_image["nll_iwae"], first.per_image["nll_iwae"])
    assert cached_run(str(folder), asked, str(tmp_path), ["model.is_k=3"]) is None
    other = shutil.copytree(folder, tmp_path / "other")
    (other / WEIGHTS).write_bytes(b"others")
    assert cached_run(str(other), asked, str(tmp_path), ()) is None


def test_scores_of_all_images_are_not_those_of_a_few(trained, tmp_path):
    """Asked for a few, it scores them."""
    run, output = only_run(trained[0]), tmp_path / "few"
    copy = shutil.copytree(run, tmp_path / "runs" / run.name)
    few = ["task.num_images=5", "task.report=false", "task.estimators=[]", OWN_DATA]
    call(tmp_path, "task=export", f"checkpoint={copy}", *few, f"task.output={output}")
    assert json.loads((output / "results.json").read_text())["bound"]["images"] == 5


def test_its_card_is_one_that_the_hub_reads(folder):
    card = ModelCard.load(folder / "README.md")
    first = json.loads((folder / "results.json").read_text())
    assert (card.data.license, card.data.library_name) == ("mit", "dct-ladder-vae")
    results = {result.metric_name: result for result in card.data.eval_results}
    nll = first["likelihoods"][0]
    named = f"−log p(x) (nats per image; iwae, K = {nll['num_samples']}, bound)"
    assert results[named].metric_value == pytest.approx(nll["nll"], abs=1e-5)
    assert results[named].dataset_split == "test"


def test_a_folder_that_is_there_is_not_touched(trained, folder):
    run = only_run(trained[0])
    found = call(trained[0], "task=export", f"checkpoint={run}", f"task.output={folder}", status=1)
    assert "is there already: name a new folder" in found.stderr
    found = call(trained[0], "task=export", f"checkpoint={run}", status=1)
    assert "task.output=None is not set" in found.stderr


def altered_weights(folder):
    weights = load_file(folder / WEIGHTS)
    next(iter(weights.values())).add_(1.0)
    save_file(weights, folder / WEIGHTS)


def with_digest(folder):
    """Whoever changes the weights can change the digest."""
    record = json.loads((folder / CONFIG).read_text())
    write_json(folder / CONFIG, {**record, "weights_sha256": sha256(folder / WEIGHTS)})


def nan_weights(folder):
    weights = load_file(folder / WEIGHTS)
    next(t for t in weights.values() if t.is_floating_point()).fill_(torch.nan)
    save_file(weights, folder / WEIGHTS)
    with_digest(folder)


def fewer_weights(folder):
    weights = load_file(folder / WEIGHTS)
    del weights[next(iter(weights))]
    save_file(weights, folder / WEIGHTS)
    with_digest(folder)


class Planted:
    def __reduce__(self):
        return (os.system, ("touch planted",))


def a_pickle(folder):
    (folder / WEIGHTS).write_bytes(pickle.dumps(Planted()))
    with_digest(folder)


def interpolated(folder):
    record = json.loads((folder / CONFIG).read_text())
    record["config"]["name"] = "${oc.env:HOME}"
    write_json(folder / CONFIG, record)


def a_class(folder):
    record = json.loads((folder / CONFIG).read_text())
    record["config"]["model"]["encoder"]["_target_"] = "os.system"
    write_json(folder / CONFIG, record)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (altered_weights, "other weights than config.json names"),
        (nan_weights, "NaN or infinite"),
        (fewer_weights, "another architecture .*it lacks"),
        (a_pickle, "is damaged"),
        (interpolated, r"\$\{"),
        (a_class, "os.system"),
        (lambda folder: (folder / CONFIG).unlink(), f"has no {CONFIG}"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"has no {WEIGHTS}"),
        (lambda folder: (folder / CONFIG).write_text("{"), "is not a whole JSON file"),
        (lambda folder: (folder / CONFIG).write_text(" " * 2_000_000), "too large"),
        (lambda folder: os.truncate(folder / WEIGHTS, 1000), "other weights"),
    ],
)
def test_what_was_altered_is_refused(folder, tmp_path, monkeypatch, change, told):
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy)
    with pytest.raises(ValueError, match=told):
        load_model(copy, [OWN_DATA])
    assert not (tmp_path / "planted").exists()


HUB = """
import sys
from utils.checkpoint import load_model
for source in sys.argv[2:]:
    try:
        model, config = load_model(source, [sys.argv[1]])
        print(config.name, model.num_latents)
    except ValueError as error:
        print(error)
"""


def test_the_hub_s_client_fetches(folder, tmp_path):
    """From its cache, as on a machine without a network."""
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Planted()))
    for name, files in (("digits", folder), ("pickled", pickled)):
        repository = tmp_path / "cache" / f"models--org--{name}"
        (repository / "refs").mkdir(parents=True)
        for revision in ("main", "v1"):
            (repository / "refs" / revision).write_text("a" * 40)
        shutil.copytree(files, repository / "snapshots" / ("a" * 40))
    told = {
        "hf://org/digits": "digits_dct_ladder 7",
        "hf://org/digits@v1": "digits_dct_ladder 7",
        "hf://org/pickled": "holds no model.safetensors",
        "hf://org/nothing": "could not be fetched",
        "hf://digits": "use hf://org/name@revision",
    }
    own = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    variables = {**environment(tmp_path), **own, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HUB, OWN_DATA, *told]
    found = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    for line, wanted in zip(found.stdout.splitlines(), told.values(), strict=True):
        assert wanted in line


def test_nothing_is_written_through_a_link_in_a_run_that_has_no_scores(saved, tmp_path):
    path, _ = saved
    run, outside = path.parent.parent, tmp_path / "outside"
    outside.mkdir()
    (run / "report").symlink_to(outside)
    overrides = (f"checkpoint={path}", "task=export", f"task.output={tmp_path / 'out'}")
    with pytest.raises(ConfigError, match=r"report is a symbolic link, so nothing was written"):
        export(Command(compose(list(overrides)), overrides), Processes())
    assert not list(outside.iterdir()) and not (tmp_path / "out").exists()


def test_no_place_of_this_machine_is_shared():
    plain = public_settings(
        composed("digits_ladder", "task=export", "task.output=/home/me", "ood.root=/data/me")
    )
    assert plain["task"]["output"] is None and plain["ood"]["root"] is None


def test_settings_of_images_of_ones_own_load_again():
    own = ["dataset=image_folder", "dataset.root=/home/me/faces", "dataset.cache=/scratch/me"]
    own += ["dataset.size=8", "dataset.channels=1", "name=own"]
    plain = public_settings(composed("digits_ladder", *own))
    assert not [value for _, value in leaves(plain["dataset"]) if str(value).startswith("/")]
    check(plain, to_build=False)
    assert _without_folders({"path": "/home/me/x", "more": ["~/y", "z/w", 3]}) == {
        "path": "x",
        "more": ["y", "z/w", 3],
    }


def test_no_link_leads_into_what_is_shared(trained, tmp_path):
    run = tmp_path / "runs" / "theirs"
    shutil.copytree(only_run(trained[0]), run)
    (tmp_path / "secret").write_text("secret")
    (run / "report" / "more").symlink_to(tmp_path / "secret")
    arguments = ["task=export", f"checkpoint={run}", OWN_DATA, f"task.output={tmp_path / 'out'}"]
    found = call(tmp_path, *arguments, status=1)
    assert "more is a symbolic link out of its folder, so nothing was shared" in found.stderr
    assert not list(tmp_path.glob("out*"))
