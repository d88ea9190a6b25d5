"""Runs side by side: groups, means over seeds, and intervals of differences that hold."""

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.conftest import ROOT, compose
from utils.errors import ConfigError
from utils.evaluation.collapse import THRESHOLDS
from utils.evaluation.compare import _letter, compare
from utils.evaluation.compared_runs import (
    DERIVED,
    Group,
    Run,
    cached_run,
    groups,
    read_run,
    sources,
)
from utils.evaluation.differences import difference, measures
from utils.evaluation.record import ScoreRecord
from utils.files import file_digest, write_arrays, write_json
from utils.report.comparison import write_comparison
from utils.report.comparison_plots import draw_comparison
from utils.report.drawing import vector
from utils.settings.check import check_task
from utils.terminal import Terminal

N = 500
IMAGES = np.random.default_rng(0).normal(90, 10, N)  # what the images have in common


def run(
    name="a",
    seed=0,
    shift=0.0,
    noise=0.5,
    context=3,
    samples=100,
    digest="same",
    noise_seed=0,
    per_context=4,
    protocol="p",
) -> Run:
    """A run whose nll is the images' own, plus a shift, plus noise of its own."""
    rng = np.random.default_rng([seed, len(name), ord(name[0])])
    nll = IMAGES + shift + noise * rng.normal(size=N)
    kl = np.stack([np.full(N, 4.0), np.full(N, 2.0)], 1)
    arrays = {"nll_iwae": nll, "nelbo": nll + 1, "kl": kl, "reconstruction": nll - 5}
    entry = {"estimator": "iwae", "num_samples": samples, "prior_samples": 2, "nll": nll.mean()}
    entry |= {"per_context": per_context, "nll_se": 0.4, "ess": 9.0, "images": N}
    bound = {"images": N, "passes": 2, "reconstruction": 85.0, "nelbo": 91.0, "nelbo_se": 0.4}
    bound |= {"kl": [4.0, 2.0], "kl_se": [0.0, 0.0], "elements": [8, 8], "collapsed": [0, 0]}
    bound |= {"active": [6, 2], "active_low": [5, 2], "active_high": [6, 4]}
    record = {"name": name, "seed": seed, "checkpoint": f"{name}{seed}.pth", "dataset": "d"}
    record |= {"split": "test", "images_digest": digest, "protocol": protocol, "dims": 64}
    record |= {"conditions": None if noise_seed is None else {"noise_seed": noise_seed}}
    record |= {"context": True, "bound": bound, "likelihoods": [entry]}
    record |= {"active_by_threshold": [8] * len(THRESHOLDS)}
    record |= {"config": {"name": name, "model": {"ctx_size": context}, "train": {"seed": seed}}}
    return Run(ScoreRecord.from_json(record, Path("results.json")), arrays)


def test_runs_are_grouped_by_everything_but_the_seed():
    found = groups([run("a", 1), run("b", 0), run("a", 0), run("a", 0, context=5)])
    labels = ["a model.ctx_size=3", "b", "a model.ctx_size=5"]
    assert [group.label for group in found] == labels
    assert [[r.seed for r in group.runs] for group in found] == [[0, 1], [0], [0]]


def test_a_label_has_the_value_that_a_setting_has_where_it_says_nothing():
    """model.decoder.output=state, which does not rename earlier runs."""
    skip = with_settings(run("a"), model={"ctx_size": 3, "decoder": {"output": "skip"}})
    labels = [group.label for group in groups([run("a"), skip])]
    assert labels == ["a model.decoder.output=state", "a model.decoder.output=skip"]


def test_an_interval_over_images_is_of_paired_differences():
    """Far narrower than the images' spread, and it holds the shift 95 times of 100."""
    held = 0
    for seed in range(100):
        base, other = groups([run("a", seed), run("b", seed, shift=0.3)])
        nll = measures([*base.runs, *other.runs])[0]
        found = difference(nll, other, base)
        assert found.over_images == pytest.approx(1.96 * (0.5 * 2**0.5) / N**0.5, rel=0.2)
        held += abs(found.mean - 0.3) < found.over_images
    assert 88 <= held <= 100


def test_an_interval_over_seeds_is_students_t():
    runs = [run("a", seed, shift) for seed, shift in enumerate((0, 1, 2))]
    runs += [run("b", seed, shift) for seed, shift in enumerate((1, 2, 5))]
    base, other = groups(runs)
    nll = measures(runs)[0]
    ours, theirs = other.values(nll.of), base.values(nll.of)
    found = difference(nll, other, base).over_seeds
    low, high = stats.ttest_rel(ours, theirs).confidence_interval()
    assert found == pytest.approx((high - low) / 2)
    fewer = Group("b", other.runs[:2])
    found = difference(nll, fewer, base).over_seeds
    low, high = stats.ttest_ind(ours[:2], theirs, equal_var=False).confidence_interval()
    assert found == pytest.approx((high - low) / 2)
    one = Group("b", other.runs[:1])
    assert difference(nll, one, base).over_seeds is None


def test_seeds_without_spread_and_single_seeds():
    same = [run("a", seed, noise=0.0) for seed in (0, 1)]
    same += [run("b", seed, shift=1.0, noise=0.0) for seed in (0, 1, 2)]
    base, other = groups(same)
    nll = measures(same)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paired = Group("b", other.runs[:2])
        assert difference(nll, paired, base).over_seeds == pytest.approx(0, abs=1e-12)
        assert difference(nll, other, base).over_seeds == pytest.approx(0, abs=1e-12)
        one, other_one = Group("a", base.runs[:1]), Group("b", other.runs[:1])
        assert difference(nll, other, one).over_seeds is None
        assert difference(nll, other_one, base).over_seeds is None
        assert difference(nll, other_one, one).over_seeds is None


def test_active_units_differ_within_what_both_runs_leave_open():
    base, other = groups([run("a"), run("b")])
    active = measures([*base.runs, *other.runs])[-1]
    found = difference(active, other, base)
    assert found.mean == 0 and found.over_images == pytest.approx(100 * 2 * 2 / 16)


def test_bits_are_nats_scaled():
    runs = [run("a"), run("b", shift=1.0)]
    nats, bits, *_ = measures(runs)
    assert (nats.unit, bits.unit) == ("nats", "bits/dim")
    assert bits.of(runs[0]) == pytest.approx(nats.of(runs[0]) / (64 * np.log(2)))


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        ([run("a"), run("b", digest="other")], "evaluated on different images"),
        ([run("a"), run("b", protocol="q")], r"b0.pth \(q\) and a0.pth \(p\) have likelihoods of"),
        ([run("a"), run("a")], "is among the runs twice"),
        ([run("a"), run("b", samples=50)], "has K = 100 and K = 50.*: .*model.is_k="),
        (
            [run("a"), run("b", per_context=None)],
            r"K = 100 and u per 4 samples, 2 path\(s\) and u per image, 2 path\(s\): ",
        ),
        (
            [run("a"), run("b", noise_seed=1)],
            r"b0.pth \(noise_seed: 1\) and a0.pth \(noise_seed: 0\)",
        ),
        (
            [run("a"), run("b", noise_seed=None)],
            r"\(noise of train.seed 0, by an earlier version\)",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, complaint):
    with pytest.raises(ConfigError, match=complaint):
        compare(runs)


def test_patterns_name_several_runs_and_one_is_too_few(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    assert sources([f"{tmp_path}/*"]) == [str(tmp_path / "a"), str(tmp_path / "b")]
    for few in ([], ["runs/one"], [f"{tmp_path}/c*"]):
        with pytest.raises(ConfigError, match="name two or more"):
            sources(few)


def test_scores_on_disk_count_while_they_answer_the_question(tmp_path):
    folder = tmp_path / "run"
    weights = folder / "checkpoints" / "best.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    (folder / "config.yaml").write_text("")
    made = run("a")
    config = compose("digits_ladder", "train.seed=0").plain
    changes = {"config": config, "checkpoint_digest": file_digest(weights)}
    record = made.record.model_copy(update=changes)
    write_arrays(folder / "results.npz", made.per_image)
    write_json(folder / "results.json", record.to_json())
    task = {"name": "compare", "split": "test", "num_images": None, "estimators": ["iwae"]}
    task |= {"noise_seed": 0}

    def found(overrides=(), **changes):
        asked = check_task({**task, "output": None, **changes})
        return cached_run(str(folder), asked, str(tmp_path), overrides)

    assert found().record == record
    assert np.array_equal(found().per_image["nll_iwae"], made.per_image["nll_iwae"])
    assert found(["model.is_k=100"]) is not None
    assert found(["model.is_k=200"]) is None
    assert found(["model.is_k_paths=1"]) is None and found(["model.is_k_per_context=1"]) is None
    assert found(noise_seed=1) is None
    assert found(split="validation") is None
    assert found(num_images=10) is None
    assert found(estimators=["iwae", "published"]) is None
    earlier = record.model_copy(update={"conditions": None})
    write_json(folder / "results.json", earlier.to_json())
    assert found() is None
    write_json(folder / "results.json", record.to_json())
    weights.write_bytes(b"others")
    assert found() is None
    weights.unlink()  # scores alone can be compared too
    assert found().record == record


def test_per_image_figures_of_another_evaluation_are_not_compared(tmp_path):
    made = run("a")
    path = write_json(tmp_path / "test_scores.json", made.record.to_json())
    for arrays in (
        run("b").per_image,  # as when a second evaluation was killed between its two files
        {name: array[:10] for name, array in made.per_image.items()},
        {"kl": made.per_image["kl"]},
    ):
        write_arrays(path.with_suffix(".npz"), arrays)
        with pytest.raises(ConfigError, match=r"test_scores.npz is of other scores .*remove it"):
            read_run(path)
    write_arrays(path.with_suffix(".npz"), made.per_image)
    assert read_run(path).record == made.record


def test_names_are_shown_as_they_are():
    names = ["a $x_{$ b", "_hidden", "cost\\$", "b"]  # mathematics, hidden labels to matplotlib
    drawing = draw_comparison(compare([run(name, n) for n, name in enumerate(names)]).groups)
    for narrow in (False, True):
        text = vector(drawing, narrow)
        for letter, name in zip("ABCD", names, strict=True):
            assert f">{letter}: {name}</text>" in text and f">{letter}</text>" in text


@pytest.mark.parametrize("count", [1, 9])
def test_one_group_and_many_have_room_for_their_names(count):
    """Beside the panels, or below them on a narrow page."""
    named = [run(f"{n} of some long and many-worded names of models") for n in range(count)]
    drawing = draw_comparison(compare([run(named[0].record.name, 1), *named]).groups)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, where the legend leaves the axes no room
        for narrow in (False, True):
            text = vector(drawing, narrow)
            letters = [chr(ord("A") + n) for n in range(count)]
            assert all(f">{letter}</text>" in text for letter in letters)
            assert text.count("of some long and many-") == count
    assert drawing.text.endswith("active.") and "0.01" not in drawing.text


def with_settings(made: Run, **groups) -> Run:
    """The run with more settings: groups of them by name."""
    config = {**made.record.config, **groups}
    return Run(made.record.model_copy(update={"config": config}), made.per_image)


def test_settings_tell_runs_apart_without_those_that_follow(tmp_path):
    """Derived ones are left out, and what belongs to a choice that only some made alike."""
    plain = {"_target_": "Plain", "width": 8}
    dct = {"_target_": "Context", "width": 16, "kind": "dct", "bits": 2}
    runs = [
        with_settings(run("a"), model={"ctx_size": 3, "decoder": plain}, train=train(10)),
        with_settings(run("b"), model={"ctx_size": 3, "decoder": dct}, train=train(20)),
        with_settings(
            run("c"), model={"ctx_size": 3, "decoder": {**dct, "bits": 3}}, train=train(20, 15)
        ),
    ]
    first, second, third = compare(runs).groups
    keys = ["model.decoder._target_", "model.decoder.bits", "model.decoder.width"]
    keys += ["train.max_epochs", "train.scheduler.T_max"]  # set by itself in one of them
    assert list(first.settings) == keys
    assert [group.letter for group in (first, second, third)] == ["A", "B", "C"]
    assert first.settings["model.decoder.bits"] is None and third.settings[keys[1]] == 3
    assert list(compare(runs[:2]).groups[0].settings) == [keys[0], keys[2], "train.max_epochs"]
    text = write_comparison(runs, tmp_path, Terminal(False)).read_text()
    assert (
        ">B less A</h2>" in text and ">C less A</h2>" in text and ">train.max_epochs</td>" in text
    )


def train(epochs: int, cycle: int | None = None) -> dict:
    """Settings of a schedule that follows the number of epochs, or doesn't."""
    return {"seed": 0, "max_epochs": epochs, "scheduler": {"T_max": cycle or epochs}}


def test_derived_settings_are_those_that_the_configs_derive():
    lines = [
        line
        for path in (ROOT / "configs").rglob("*.yaml")
        for line in path.read_text().splitlines()
    ]
    for key, source in DERIVED.items():
        assert any(re.match(rf"\s*{key.split('.')[-1]}: \$\{{{source}\}}", line) for line in lines)


def test_letters_go_on_after_z():
    assert [_letter(n) for n in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


def test_the_page_has_every_figure(tmp_path):
    runs = [run("a", seed) for seed in (0, 1)] + [run("b", seed, shift=2) for seed in (0, 1)]
    page = write_comparison(runs, tmp_path, Terminal(False))
    content = json.loads((tmp_path / "compare.json").read_text())
    text = page.read_text()
    assert (tmp_path / "comparison.png").stat().st_size > 5000
    for found in content["groups"][1]["measures"]:
        assert f"{found['mean']:.2f}" in text or f"{found['mean']:.4f}" in text or "50.0" in text
    (nll, *_) = content["differences"][0]["measures"]
    assert nll["mean"] == pytest.approx(2, abs=0.1) and f"+{nll['mean']:.2f}" in text
    first = content["groups"][0]["measures"][0]
    mean, sd = first["mean"], first["sd"]
    assert f">{mean:.2f} ({sd:.2f})<" in text
    assert "A, seed 0: a0.pth" in text
    assert "<svg" in text and "http" not in text.replace("http://www.w3.org/", "")
