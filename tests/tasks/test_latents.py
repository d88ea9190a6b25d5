"""Encoding, interpolating and scoring of other data by the command as a user types it."""

import json

import numpy as np
import pytest

from tests.commands import OWN_DATA, call, call_each, only_run


@pytest.mark.slow
def test_encode_and_interpolate_by_the_command(trained, tmp_path):
    run = only_run(trained[0])
    checkpoint = (f"checkpoint={run}", "dataset=digits", "task.output=here")
    call(tmp_path, "task=encode", *checkpoint, "task.layers=[1]")
    found = np.load(tmp_path / "here" / "latents_test.npz")
    assert found["layer_1"].shape[0] == len(found["labels"]) == 297
    record = json.loads((tmp_path / "here" / "latents_test.json").read_text())
    assert record["classes"] == [str(n) for n in range(10)]
    call(tmp_path, "task=interpolate", *checkpoint, "task.pairs=2", "task.steps=3")
    assert (tmp_path / "here" / "interpolation.png").stat().st_size > 2000


@pytest.mark.slow
def test_scores_of_foreign_images_by_the_command(trained, tmp_path):
    run = only_run(trained[0])
    asked = [f"checkpoint={run}", "dataset=digits", "ood.dataset=digits", "ood.invert=true"]
    found = call(tmp_path, "task=ood", *asked, "task.num_images=null", "task.output=here")
    record = json.loads((tmp_path / "here" / "ood.json").read_text())
    assert (record["inside"], record["outside"]) == ("digits", "digits_inverted")
    assert record["images"] == 297 and record["digests"][0] != record["digests"][1]
    bound = record["detections"][1]
    assert bound["score"] == "−ELBO" and bound["auroc"]["value"] > 0.9
    assert f"{bound['auroc']['value']:.3f}" in found.stdout
    arrays = np.load(tmp_path / "here" / "ood.npz")
    assert len(arrays["inside_−ELBO"]) == len(arrays["outside_LLR>1_mode"]) == 297
    page = (tmp_path / "here" / "ood.html").read_text()
    assert "digits_inverted" in page and "histograms" in page.lower() and "<svg" in page


@pytest.mark.slow
def test_mistakes_get_one_sentence_and_write_nothing(trained, tmp_path):
    checkpoint = [f"checkpoint={only_run(trained[0])}", OWN_DATA, "task.output=here"]
    none = [checkpoint[0], "dataset._target_=tests.few_digits.none", "task.output=here"]
    cases = (
        (["task=encode", *checkpoint, "task.layers=[99]"], "task.layers=[99] names no layers"),
        (["task=encode", *checkpoint, "task.layers=[]"], "task.layers=[] is not valid: use a list"),
        (["task=encode", *none], "task.split=test has no images"),
        (
            ["task=interpolate", *checkpoint, "task.pairs=16"],
            "takes 32 images, task.split=test has 30",
        ),
        (["task=ood", *checkpoint], "ood.dataset is not set"),
        (["task=ood", *checkpoint, "ood.dataset=mnist"], "name a data set of that shape"),
        (["task=ood", *checkpoint, "ood.dataset=a/b"], "ood.dataset='a/b' is not valid: use the"),
        (["task=ood", *none, "ood.dataset=digits"], "task.split=test has no images in one"),
        (["task=interpolate", *checkpoint, "task.layers=[-1]"], "task.layers=[-1] is not valid"),
    )
    for (_, complaint), (status, output, errors) in zip(
        cases, call_each(tmp_path, [arguments for arguments, _ in cases]), strict=True
    ):
        assert (status, output) == (1, "") and errors.count("\n") == 1 and complaint in errors
    assert not (tmp_path / "here").exists()
