"""What is done with checkpoints by the command as a user types it, in processes of its own."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.commands import OWN_DATA, PLAIN, QUIET, SMALL, call, call_each, only_run


@pytest.mark.slow
def test_a_checkpoint_alone_is_tested_sampled_and_reconstructed(trained, tmp_path):
    """Elsewhere, without its folder, and with no setting typed again but whose code is to run."""
    run = only_run(trained[0])
    path = tmp_path / "some.pth"
    shutil.copy(run / "checkpoints" / "best.pth", path)
    checkpoint = (f"checkpoint={path}", OWN_DATA)
    call(tmp_path, "task=test", *checkpoint)
    found = json.loads((tmp_path / "runs" / "some" / "test_scores.json").read_text())
    first = json.loads((run / "results.json").read_text())
    assert found["likelihoods"] == first["likelihoods"] and found["bound"] == first["bound"]
    call(tmp_path, "task=sample", *checkpoint, "task.num_images=7", "task.output=here")
    images = np.load(tmp_path / "here" / "samples.npz")["images"]
    assert images.shape == (7, 8, 8, 1) and images.dtype == np.uint8
    call(tmp_path, "task=reconstruct", *checkpoint, "task.output=here")
    assert {p.stem for p in (tmp_path / "here").glob("*.png")} == {
        "samples",
        "reconstructions",
        "reconstructions_top",
        "context",
    }
    few = ["task.num_images=20", "model.is_k=3", "task.split=validation", "task.estimators=[iwae]"]
    call(tmp_path, "task=test", *checkpoint, *few, "task.output=there")
    found = json.loads((tmp_path / "there" / "validation_scores.json").read_text())
    assert found["bound"]["images"] == 20 and found["likelihoods"][0]["num_samples"] == 3
    few += ["task.estimators=[]", "task.mi_images=5"]
    call(tmp_path, "task=report", *checkpoint, *few, "task.output=page")
    report = json.loads((tmp_path / "page" / "report_validation" / "report.json").read_text())
    assert report["information_images"] == 5 and report["likelihoods"] == []
    assert (
        "what each layer carries"
        in (tmp_path / "page" / "report_validation" / "report.html").read_text()
    )


@pytest.mark.slow
def test_runs_are_compared_from_their_scores_and_a_checkpoint_is_scored(trained, tmp_path):
    run = only_run(trained[0])
    other = tmp_path / "other.pth"
    shutil.copy(run / "checkpoints" / "last.pth", other)
    few = ["model.is_k=1", "task.estimators=[iwae]", "task.num_images=20", "train.seed=1"]
    few += [OWN_DATA]
    arguments = ["task=compare", f"runs=[{run},{other}]"]
    found = call(tmp_path, *arguments, *few, status=1)
    assert "among the runs twice" in found.stderr  # the same settings and the seed just given
    call(tmp_path, *PLAIN, *QUIET, "train.max_epochs=1")
    output = call(tmp_path, "task=compare", f"runs=[{run},runs/digits_ladder*]").stdout
    assert "Scoring" not in output and "B: digits_ladder" in output and "B less A" in output
    content = json.loads((tmp_path / "runs" / "compare" / "compare.json").read_text())
    assert [group["label"] for group in content["groups"]] == ["digits_dct_ladder", "digits_ladder"]
    found = json.loads((run / "results.json").read_text())
    iwae = content["groups"][0]["measures"][0]
    assert iwae["mean"] == pytest.approx(found["likelihoods"][0]["nll"])


@pytest.mark.slow
def test_training_starts_from_a_checkpoint(trained, tmp_path):
    """One step at a learning rate of nearly nothing leaves the bound where it was."""
    run = only_run(trained[0])
    still = ["train.max_epochs=1", "train.optimizer.lr=1e-9", f"train.init_from={run}"]
    call(tmp_path, "experiment=digits_dct_ladder", *SMALL[:-1], *QUIET, *still)
    before = json.loads((run / "results.json").read_text())["bound"]
    after = json.loads((only_run(tmp_path) / "results.json").read_text())["bound"]
    assert after["nelbo"] == pytest.approx(before["nelbo"], rel=1e-4)
    assert after["kl"] == pytest.approx(before["kl"], rel=1e-2, abs=1e-3)


def check_mistakes(folder, cases):
    """Each (arguments, complaint) ends with status 1 and one sentence."""
    found = call_each(folder, [arguments for arguments, _ in cases])
    for (_, complaint), (status, output, errors) in zip(cases, found, strict=True):
        assert (status, output) == (1, "") and errors.count("\n") == 1
        assert errors.startswith("Error: ") and complaint in errors, errors


def test_mistakes_with_a_checkpoint_get_one_sentence(trained, tmp_path):
    """Nothing is written; the remedy is named."""
    run = only_run(trained[0])
    cut, other = tmp_path / "cut.pth", tmp_path / "other.pth"
    whole = (run / "checkpoints" / "best.pth").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    before = sorted(run.rglob("*"))
    content = torch.load(run / "checkpoints" / "best.pth", weights_only=True)
    content["config"]["model"]["num_ch"] = 32
    torch.save(content, other)
    cases = (
        ([f"checkpoint={cut}"], "is damaged"),
        (
            [f"checkpoint={other}", OWN_DATA],
            "holds another architecture than its settings describe",
        ),
        ([f"checkpoint={run}", "dataset=mnist"], "name a data set of that shape"),
        (
            [f"checkpoint={run}", OWN_DATA, "model.is_k=0"],
            "model.is_k=0 is not valid: use a whole number",
        ),
        (
            [f"checkpoint={run}", "dataset._target_=tests.few_digits.none"],
            "No images to evaluate",
        ),
    )
    check_mistakes(tmp_path, [(["task=report", *case], complaint) for case, complaint in cases])
    assert not (tmp_path / "runs").exists()
    assert sorted(run.rglob("*")) == before


def test_mistakes_get_one_sentence_a_status_and_no_folder(tmp_path):
    cases = (
        ([], "choose an experiment=…"),
        (["experiment=digits_ladder", "train.foo=3"], "train.foo is not a setting"),
        (["experiment=digits_ladder", "train.optimizer.lr=abc"], "train.optimizer.lr='abc'"),
        (["experiment=mnist_ladder", "dataset.download=false"], "MNIST is not in"),
        (["task=test"], "checkpoint is not set"),
        (["task=sync"], "task=sync needs run=…"),
        (["task=sync", "run=nowhere"], "run=nowhere is not the folder of a run"),
        (["task=compare"], "runs=[] names 0 run(s)"),
    )
    check_mistakes(tmp_path, cases)
    assert not (tmp_path / "runs").exists()
