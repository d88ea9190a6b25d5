"""Files that were not written here are data: nothing of them is run, read or followed."""

import copy
import json
import os

import pytest
import torch
import yaml

from tests.commands import call_each
from tests.conftest import compose
from utils.checkpoint import load_model
from utils.errors import ConfigError
from utils.settings import build

SECRET = "planted-in-the-environment"


@pytest.fixture
def canaries(tmp_path, monkeypatch):
    """(a file that nothing may make, what would make it)."""
    trace = tmp_path / "trace"
    monkeypatch.setenv("PLANTED", SECRET)
    yield trace, {"_target_": "pathlib.Path.touch", "self": str(trace)}
    assert not trace.exists()


def planted(path, change, name="bad.pth"):
    """A copy of a checkpoint with other settings, alone in its folder; its path."""
    content = torch.load(path, weights_only=True)
    change(content["config"])
    folder = path.parent / "elsewhere"
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / name)
    return folder / name


def created(trace) -> str:
    """What OmegaConf's own resolver turns into a node of settings."""
    return "${oc.create:{_target_: os.mkdir, path: " + str(trace) + "}}"


@pytest.mark.parametrize("escapes", ["", "\\", "\\\\"])
@pytest.mark.parametrize("place", ["model.encoder", "model.encoder.extra", "dataset.root", "name"])
def test_interpolations_in_a_file_are_refused(saved, canaries, escapes, place):
    trace, _ = canaries
    for text in (created(trace), "${oc.env:PLANTED}", "${runs_dir}", "x${name}y"):

        def change(settings, text=text):
            *groups, key = place.split(".")
            for group in groups:
                settings = settings[group]
            settings[key] = escapes + text

        with pytest.raises(ValueError, match="holds an interpolation") as caught:
            load_model(planted(saved[0], change))
        told = str(caught.value)
        assert place in told and SECRET not in told and "\n" not in told


def test_interpolations_in_keys_and_strange_types_are_refused(saved, canaries):
    trace, call = canaries
    for more, word in (
        ({created(trace): 1}, "interpolation"),
        ({"x": (call,)}, "is a tuple"),
        ({"x": torch.zeros(2)}, "is a Tensor"),
        ({"x": {1: call}}, "no text"),
        ({"x": b"bytes"}, "holds more than tensors"),
    ):
        path = planted(saved[0], lambda settings, more=more: settings["model"].update(more))
        with pytest.raises(ValueError, match=word) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
    deep = inner = {}
    for _ in range(5_000):
        inner["x"] = inner = {}
    # Too deep for a pickle to be written; as the settings of a run fetched it would be YAML.
    from utils.settings.trust import plain_data

    with pytest.raises(ValueError, match="without end"):
        plain_data(deep, "checkpoint=bad.pth")


@pytest.mark.parametrize(
    "place",
    ["model.encoder", "model.decoder", "model.decoder.z_L_prior", "dataset", "train.optimizer"],
)
def test_a_module_that_a_file_names_is_not_imported(saved, tmp_path, monkeypatch, place):
    (tmp_path / "planted_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def change(settings):
        for group in place.split("."):
            settings = settings[group]
        settings["_target_"] = "planted_module.anything"

    with pytest.raises(ValueError, match="names code outside this project"):
        load_model(planted(saved[0], change))


def test_settings_that_are_none_are_refused(saved):
    content = torch.load(saved[0], weights_only=True)
    for settings in (None, "text", [1], 3):
        torch.save({**content, "config": settings}, saved[0].parent / "bad.pth")
        with pytest.raises(ValueError, match="holds no settings"):
            load_model(saved[0].parent / "bad.pth")


@pytest.mark.parametrize("group", ["train", "model", "dataset"])
def test_a_group_that_is_none_takes_no_override(saved, group):
    for value in ([[1]], "text", 3, None):
        path = planted(saved[0], lambda settings, value=value: settings.update({group: value}))
        with pytest.raises(ValueError, match=r"[.?]$") as caught:
            load_model(path, [f"{group}.more=1"])
        assert "\n" not in str(caught.value) and group in str(caught.value)


@pytest.mark.slow
def test_a_run_folder_from_elsewhere_authorises_nothing(saved, canaries, tmp_path):
    """Its config.yaml and checkpoints name code, secrets and places; no task follows."""
    _, call = canaries
    secret = "${oc.env:PLANTED}"
    cases = []
    for index, change in enumerate(
        (
            lambda s: s["model"].update(encoder=call),
            lambda s: s["dataset"].update(call),
            lambda s: s["dataset"].update(more=[call]),
            lambda s: s["wandb"].update(notes=secret),
            lambda s: s["train"].update(optimizer={**call, "_partial_": True}),
            lambda s: s.update(name="../outside"),
            lambda s: s.update(name=secret),
            lambda s: s.update(name="a/b"),
        )
    ):
        settings = copy.deepcopy(compose("digits_dct_ladder", "train.max_epochs=1").plain)
        change(settings)
        folder = tmp_path / "runs" / f"from_elsewhere{index}"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        (folder / "run.json").write_text(json.dumps({"wandb_id": f"id{index}"}))
        content = {**torch.load(saved[0], weights_only=True), "config": settings}
        for name in ("best", "last"):
            torch.save(content, folder / "checkpoints" / f"{name}.pth")
        cases.append([f"train.resume_id=id{index}"])
        cases.append(["task=test", f"checkpoint={folder}"])
        cases.append(["task=compare", f"runs=[{folder},{folder}]"])
    before = sorted(str(path) for path in tmp_path.rglob("*") if "wandb" not in str(path))
    for arguments, (status, output, errors) in zip(cases, call_each(tmp_path, cases), strict=True):
        assert status == 1 and errors.startswith("Error: "), (arguments, output, errors)
        assert errors.count("\n") == 1 and SECRET not in output + errors, errors
    after = sorted(str(path) for path in tmp_path.rglob("*") if "wandb" not in str(path))
    assert after == before and not os.path.exists(tmp_path / "outside")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a b", "x" * 101, "a\\nb", "-m"])
def test_a_name_is_one_component_of_a_path(name):
    with pytest.raises(ValueError, match=r"name=.* is not valid: use experiment=… or a name"):
        compose("digits_dct_ladder", f"name='{name}'")


def test_no_sweep_writes_the_key_down(tmp_path):
    """Hydra writes a sweep's settings and its words to a file."""
    mine = tmp_path / "own" / "wandb" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(f"defaults: [defaults]\napi_key: {SECRET}\n")
    quick = ["-m", "experiment=digits_ladder", "train.seed=-1,-2"]  # which no run has
    cases = [
        [*quick, f"wandb.api_key={SECRET}"],
        ["--config-dir=own", *quick, "wandb=mine"],
        [*quick, f"wandb={{api_key: {SECRET}}}"],
    ]
    results = call_each(tmp_path, cases)
    for status, output, errors in results:
        assert status == 1 and SECRET not in output + errors
    assert [errors.count("train.seed=-") for _, _, errors in results] == [2, 2, 0]
    assert results[2][2].startswith("Error: wandb={api_key: …} would be written to files: give")
    written = [path for path in tmp_path.rglob("*.yaml") if path != mine]
    assert [path.name for path in written] == ["multirun.yaml"]
    assert not any(SECRET in path.read_text() for path in written)


def test_a_data_set_is_read_in_its_own_place_alone(saved):
    """Its loaders fetch files and write them; elsewhere they would be called while building."""

    def change(settings):
        loader = {"_target_": "datasets.fashion_mnist.load", "root": "/nowhere"}
        settings["model"]["encoder"]["x"] = loader

    path = planted(saved[0], change)
    with pytest.raises(ValueError, match=r"model.encoder.x._target_ names a data set"):
        load_model(path)


def test_a_model_that_is_refused_is_not_built_with_numbers(monkeypatch):
    settings = compose("digits_dct_ladder", "+model.decoder.foo=1")
    built = []
    make = build.build_model
    monkeypatch.setattr(build, "build_model", lambda each: built.append(each) or make(each))
    with pytest.raises(ConfigError):
        build.build_without_numbers(settings)
    assert len(built) == 1
