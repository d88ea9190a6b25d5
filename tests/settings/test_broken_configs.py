"""Whatever is wrong with a command, it ends at once with one sentence and leaves nothing."""

import contextlib
import io
import math
import os
import resource
import runpy
import shutil
import string
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from datasets import digits
from tests.conftest import ROOT
from utils.settings import composition, identity
from utils.settings.schema import KEYS
from utils.settings.typed import check_words
from utils.training.trainer import Trainer

EXPERIMENTS = ("digits_ladder", "digits_dct_ladder")
GROUPS = ("dataset", "model", "model/encoder", "model/decoder", "train/optimizer", "task")
BELOW_TARGETS = ("train.optimizer", "train.scheduler", "model.encoder", "model.decoder")
REMEDIES = ("use", "did you mean", "remove", "correct", "give", "lower", "set", "leave")
WORD = st.text(string.ascii_lowercase, min_size=1, max_size=8)
BIG = st.integers(10**6, 10**12)
VALUES = st.one_of(
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(string.printable.replace("\\", ""), max_size=12),
    st.lists(st.one_of(st.integers(-5, 2000), WORD, st.none()), max_size=4),
    st.dictionaries(WORD, st.integers(), min_size=1, max_size=2),
)
ABSURD = (  # sizes that are numbers as any other
    ("model.num_ch", st.integers(8192, 16384)),
    ("dataset.data_module.batch_size", BIG),
    ("train.acc_grad", BIG),
    ("model.decoder.num_blocks_per_scale", st.integers(500, 1000)),
    ("model.encoder.num_blocks_per_scale", st.integers(500, 1000)),
    ("model.latent_scales", st.lists(st.integers(600, 1000), min_size=2, max_size=2)),
    ("model.latent_scales", st.lists(st.integers(1, 9), min_size=3, max_size=40)),
    ("model.latent_width", st.lists(st.integers(1, 9), min_size=3, max_size=40)),
)


@cache
def keys(experiment: str) -> list[str]:
    """The settings that an experiment has."""
    composed = composition.resolve(composition.compose([f"experiment={experiment}"]))
    return [key for key, _ in identity.leaves(composed) if key in KEYS and "." in key]


def written(value) -> str:
    """A value as the command line has it."""
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}: {written(v)}' for k, v in value.items())}}}"
    return (
        str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    )


@st.composite
def broken(draw) -> tuple[list[str], str]:
    """(arguments, what the sentence must name)."""
    experiment = draw(st.sampled_from(EXPERIMENTS))
    kind = draw(st.sampled_from(("value", "value", "absurd", "unknown", "gone", "choice", "noise")))
    if kind in ("value", "gone"):
        key = draw(st.sampled_from(keys(experiment)))
        assume(key != "wandb.api_key")  # goes another way
        override = f"~{key}"
        if kind == "gone":  # below a target its own defaults may do
            assume(key.endswith("_") or not key.startswith(BELOW_TARGETS))
        else:
            value = draw(VALUES)
            assume(isinstance(value, dict) or not KEYS[key].accepts(value))
            override = f"{key}={written(value)}"
            read = [override]
            check_words(read)
            assume(read == [override])  # else it is a text that looks like a number
    elif kind == "absurd":
        key, values = draw(st.sampled_from(ABSURD))
        override = f"{key}={written(draw(values))}"
    elif kind == "unknown":
        key = ".".join((draw(st.sampled_from(("model", "train", "dataset", "wandb"))), draw(WORD)))
        assume(not any(known == key or known.startswith(f"{key}.") for known in KEYS))
        override = f"{draw(st.sampled_from(('', '+', '++')))}{key}={draw(st.integers())}"
    elif kind == "choice":
        key, choice = draw(st.sampled_from(GROUPS)), "no" + draw(WORD)
        override, key = f"{key}={choice}", choice
    else:
        override = draw(st.text(string.printable, min_size=1, max_size=20))
        assume(not override.startswith(("-", "#")) and override.strip())
        key = ""
    return [f"experiment={experiment}", override], key


def refuse(self) -> None:
    """Instead of training."""
    raise AssertionError("This was not refused.")


def run(arguments: list[str]) -> tuple[int, str, str, float]:
    """The command in this process: status, output, errors, seconds of its own."""
    output, errors, script = io.StringIO(), io.StringIO(), str(ROOT / "run_experiment.py")
    before = sys.argv
    sys.argv = [script, *arguments]
    os.environ.pop("HYDRA_FULL_ERROR", None)
    began = time.process_time()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        seconds = time.process_time() - began
        return end.code, output.getvalue(), errors.getvalue(), seconds
    finally:
        sys.argv = before
        os.environ.pop("HYDRA_FULL_ERROR", None)


def check(folder: Path, examples: int, monkeypatch) -> None:
    """So many broken commands."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(Trainer, "fit", refuse)
    digits.load()  # imports, once
    run(["experiment=digits_dct_ladder", "dataset.data_module.batch_size=200000"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    @given(broken())
    def each(case):
        arguments, key = case
        for left in folder.iterdir():  # of the one before, which has failed
            shutil.rmtree(left)
        status, output, errors, seconds = run(arguments)
        assert status == 1 and output == "", (status, output)
        assert errors.startswith("Error: ") and errors.count("\n") == 1, errors
        assert key.rpartition(".")[2] in errors, errors
        assert any(word in errors for word in REMEDIES), errors
        assert not os.listdir(folder)
        assert seconds < 1.0 or run(arguments)[3] < 1.0  # other work may slow one

    each()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown * 1024 < 1e9


def test_broken_commands_get_one_sentence(tmp_path, monkeypatch):
    check(tmp_path, 20, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_thousand_broken_commands_get_one_sentence(tmp_path, monkeypatch):
    check(tmp_path, 1000, monkeypatch)


def test_written_values_are_read_back():
    for value in ("it's", [1, "x", None], {"a": 1}, True, None, 1.5, math.inf, -3):
        (parsed,) = OverridesParser.create().parse_overrides([f"k={written(value)}"])
        assert parsed.value() == value
