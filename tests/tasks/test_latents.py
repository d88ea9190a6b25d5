"""Encoding, interpolating and scoring of other data by the command as a user types it."""

import json

import numpy as np
import pytest

from tests.commands import OWN_DATA, call, call_each, only_run


@pytest.mark.slow
def test_encode_and_interpolate_by_the_command(trained, tmp_path):
    run = only_run(trained[0])
    checkpoint = (f"checkpoint={run}", "dataset=digits", "task.output=here")
    call(tmp_path, "task=encode", *checkpoint, "task.layers=[1]", "task.split=all")
    assert len(np.load(tmp_path / "here" / "latents_train.npz")["labels"]) == 1300
    found = np.load(tmp_path / "here" / "latents_test.npz")
    assert found["layer_1"].shape[0] == len(found["labels"]) == 297
    record = json.loads((tmp_path / "here" / "latents_test.json").read_text())
    assert record["classes"] == [str(n) for n in range(10)]
    call(tmp_path, "task=interpolate", *checkpoint, "task.num_images=4", "task.steps=3")
    assert (tmp_path / "here" / "interpolation.png").stat().st_size > 2000


def test_mistakes_get_one_sentence_and_write_nothing(trained, tmp_path):
    checkpoint = [f"checkpoint={only_run(trained[0])}", OWN_DATA, "task.output=here"]
    none = [checkpoint[0], "dataset._target_=tests.few_digits.none", "task.output=here"]
    cases = (
        (["task=encode", *checkpoint, "task.layers=[99]"], "task.layers=[99] names no layers"),
        (["task=encode", *checkpoint, "task.layers=[]"], "task.layers=[] is not valid: use a list"),
        (["task=encode", *none], "task.split=test has no images"),
        (["task=interpolate", *checkpoint, "task.num_images=3"], "an even number"),
        (["task=interpolate", *checkpoint, "task.layers=[-1]"], "task.layers=[-1] is not valid"),
    )
    for (_, complaint), (status, output, errors) in zip(
        cases, call_each(tmp_path, [arguments for arguments, _ in cases]), strict=True
    ):
        assert (status, output) == (1, "") and errors.count("\n") == 1 and complaint in errors
    assert not (tmp_path / "here").exists()
