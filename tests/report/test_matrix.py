"""The collapse matrix's statistics, reading rule and page, from runs whose figures are known."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from tests.conftest import ROOT
from utils.errors import ConfigError
from utils.report import matrix_tables
from utils.report.matrix import Change, Matrix, build_matrix, half_width, holm, p_value, verdict
from utils.report.matrix_cells import BY_KEY, MEASURES, CellRun
from utils.report.matrix_page import main, read_matrix, resolved_sentence, write_matrix
from utils.report.matrix_plots import _logarithmic
from utils.terminal import Terminal

IMAGES = 40


def run(arm, seed, nll=90.0, kl=(2.0, 3.0), lost=(5.0, 5.0), information=1.0, digest="a", code="c"):
    """A finished run with these figures; every image's own differ."""
    generator = np.random.default_rng([seed, len(arm)])
    spread = generator.normal(size=IMAGES)
    layers = [
        SimpleNamespace(
            context=False,
            kl=one,
            units=4,
            active=3,
            collapsed=1,
            without=SimpleNamespace(lost=worse, lost_se=0.5),
            information=SimpleNamespace(value=information, se=0.1),
            saturated=information > 4.8,
        )
        for one, worse in zip(kl, lost, strict=True)
    ]
    per_image = {
        "nll_iwae": nll + spread - spread.mean(),
        "nelbo": nll + 1.0 + spread - spread.mean(),
        "kl": np.array(kl) + 0.0 * spread[:, None],
    }
    bound = SimpleNamespace(
        images=IMAGES,
        nelbo=nll + 1.0,
        kl=list(kl),
        active_units=0.75,
        active_units_interval=(0.5, 1),
    )
    report = SimpleNamespace(
        name="digits_ladder",
        dataset="digits",
        split="test",
        protocol="grey levels",
        images_digest=digest,
        code=code,
        dims=64,
        information_images=16,
        parameters={"parameters/all": 1000},
        bound=bound,
        layers=layers,
        likelihoods=[SimpleNamespace(estimator="iwae", nll=nll, num_samples=7)],
        config={"dataset": {"data_module": {"batch_size": 10}}},
    )
    row = {"step": 4, "train/loss": 2.0, "train/reconstruction": 80.0, "train/kl": sum(kl)}
    row["train/images_per_second"] = 20.0
    rows = [
        {**row, "epoch": e, "collapse/kl_0": kl[0] * e, "collapse/kl_1": kl[1]} for e in (1, 2, 3)
    ]
    return CellRun(arm, seed, ROOT / f"{arm}-{seed}", report, per_image, rows)


def matrix_of(*runs, missing=()):
    labels = dict.fromkeys(each.arm for each in runs)
    return build_matrix(runs, {label: {"model.key": label} for label in labels}, dict(missing))


def change(mean=0.0, p=None, over_seeds=None):
    return Change(mean=mean, over_images=None, over_seeds=over_seeds, p=p)


def changes(**given):
    keys = [measure.key for measure in MEASURES if measure.compared]
    return {key: given.get(key, change(p=1.0)) for key in keys}


def test_students_t_is_scipys():
    values = [0.3, -0.1, 0.8, 0.4, 0.25]
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(0.95)
    assert half_width(values) == pytest.approx((high - low) / 2)
    assert p_value(values) == pytest.approx(test.pvalue)
    assert half_width([1.0]) is None and p_value([1.0]) is None


def test_the_interval_over_seeds_covers_the_truth_in_95_of_100():
    samples = np.random.default_rng(0).normal(0.7, 2.0, (4000, 5)).tolist()
    covered = np.mean([abs(np.mean(sample) - 0.7) <= half_width(sample) for sample in samples])
    assert covered == pytest.approx(0.95, abs=0.012)


def test_equal_differences_of_a_count_are_known_to_a_rounding_only():
    assert p_value([1.0, 1.0, 1.0], step=1.0) > 0.05 > p_value([2.0] * 5, step=1.0)
    assert half_width([1.0] * 3, step=1.0) > 1.0
    assert p_value([1.0, 1.0, 1.0]) is None and half_width([1.0, 1.0, 1.0]) == 0.0
    noisy = [1.0, 4.0, 2.0]  # already known to less than that
    assert p_value(noisy, step=1.0) == p_value(noisy)


def test_holm_is_holms():
    """The example's p, sorted: 0.005, 0.01, 0.03, 0.04, by 4, 3, 2, 1, and never decreasing."""
    given = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    corrected = holm({label: changes(nll=change(1.0, p)) for label, p in given.items()})
    found = {label: own["nll"].p for label, own in corrected.items()}
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


def test_holm_keeps_the_family_wise_error_under_null_effects():
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        samples = {arm: generator.normal(size=4).tolist() for arm in "abcdefgh"}
        nulls = {
            arm: changes(nll=change(float(np.mean(v)), p_value(v))) for arm, v in samples.items()
        }
        wrong += any(own["nll"].direction for own in holm(nulls).values())
    assert 0.01 < wrong / 400 < 0.085


def test_holm_leaves_out_what_was_not_tested():
    corrected = holm({"a": changes(nll=change(1.0, None)), "b": changes(nll=change(1.0, 0.04))})
    assert corrected["a"]["nll"].p is None and corrected["b"]["nll"].p == 0.04


UP, DOWN = change(1.0, 0.01, 0.5), change(-1.0, 0.01, 0.5)
OWN_INTERVAL_ONLY = change(1.0, 0.2, 0.9)  # above 0 by its own interval, not after the correction


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"in_use": UP}, "helps"),
        ({"information": UP, "nll": DOWN}, "helps"),
        ({"information": UP, "nll": UP}, "trades"),
        ({"information": UP, "nll": OWN_INTERVAL_ONLY}, "trades"),
        ({"kl": UP}, "pads"),
        ({"kl": UP, "in_use": DOWN}, "pads"),
        ({"kl": UP, "in_use": UP}, "helps"),
        ({"nll": UP}, "worse"),
        ({"nll": OWN_INTERVAL_ONLY}, "not resolved"),
        ({"nll": DOWN}, "not resolved"),
        ({"in_use": change(3.0, 0.05, 3.0)}, "not resolved"),
        ({"in_use": change(3.0)}, "not resolved"),
        ({"active": UP, "active_top": UP}, "not resolved"),  # alone they are no evidence
    ],
)
def test_the_reading_rule(given, expected):
    assert verdict(changes(**given)) == expected


def test_differences_are_paired_by_seed_and_by_image():
    runs = [run("none", seed, nll=90.0 + 5.0 * seed) for seed in range(4)]
    runs += [run("a", seed, nll=88.0 + 5.0 * seed + 0.01 * seed) for seed in (3, 0, 1)]
    found = matrix_of(*runs).arms[1].changes["nll"]
    paired = [-2.0 + 0.01 * seed for seed in (3, 0, 1)]
    assert found.mean == pytest.approx(np.mean(paired))
    assert found.over_seeds == pytest.approx(half_width(paired)) and found.over_seeds < 0.05
    by_seed = {(each.arm, each.seed): each.per_image["nll_iwae"] for each in runs}
    images = np.mean([by_seed["a", s] - by_seed["none", s] for s in (3, 0, 1)], axis=0)
    assert found.over_images == pytest.approx(1.959964 * images.std(ddof=1) / math.sqrt(IMAGES))


def test_an_effect_is_found_and_noise_is_not():
    noise = np.random.default_rng(3).normal(size=(5, 2))
    runs = [run("none", seed) for seed in range(5)]
    runs += [
        run("good", s, nll=89 + 0.1 * noise[s, 0], information=3 + noise[s, 1] / 10)
        for s in range(5)
    ]
    runs += [run("noise", s, nll=90 + 0.1 * noise[s, 1]) for s in range(5)]
    runs += [run("costly", s, kl=(3.0, 4.0 + 0.01 * s)) for s in range(5)]
    runs += [run("one seed", 0, information=4.0)]
    found = {arm.label: arm.verdict for arm in matrix_of(*runs).arms}
    assert found == {
        "none": "",
        "good": "helps",
        "noise": "not resolved",
        "costly": "pads",
        "one seed": "not resolved",
    }


def test_a_layer_is_in_use_by_its_error_and_worth_something_by_its_nats():
    cell = run("none", 0, lost=(0.97, 0.99))  # the 95 % error is 0.98
    assert BY_KEY["in_use"].of(cell) == BY_KEY["worth"].of(cell) == 50.0
    cell.report.layers[1].without.lost_se, cell.report.layers[1].without.lost = 0.01, 0.05
    assert BY_KEY["in_use"].of(cell) == 50.0 and BY_KEY["worth"].of(cell) == 0.0


def test_measures_of_cost_and_of_what_the_loss_hides():
    cell = run("none", 0)
    assert BY_KEY["seconds"].of(cell) == pytest.approx(40 / 20)
    nats = 2.0 * 64 * math.log(2)
    assert BY_KEY["loss"].of(cell) == pytest.approx(nats / 85.0)
    epochs = [{**cell.epochs[-1], "train/reconstruction": -nats - 10.0, "train/kl": 5.0}]
    epochs[0]["train/loss"] = -2.0  # a density's: 5 nats more than the bound of −nats − 5
    worse = replace(cell, epochs=[*epochs, {"step": 5, "epoch": 2}])  # a last epoch all skipped
    assert BY_KEY["loss"].of(worse) == pytest.approx(1.0 + 5.0 / (nats + 5.0))


def test_runs_on_other_images_are_refused():
    with pytest.raises(ConfigError, match=r"a-0 was scored on other images than .*none-0"):
        matrix_of(run("none", 0), run("a", 0, digest="b"))


def test_runs_whose_scores_do_not_compare_are_refused():
    first, fewer, other = run("none", 0), run("a", 0), run("b", 0)
    fewer.report.likelihoods[0].num_samples = 3
    with pytest.raises(ConfigError, match=r"a-0 was scored with K = 3, and .*none-0 with another"):
        matrix_of(first, fewer)
    other.report.protocol = "pixels"
    with pytest.raises(ConfigError, match=r"b-0 has a likelihood of another kind \(pixels\)"):
        matrix_of(first, other)


def test_counts_that_are_alike_in_all_seeds_have_no_interval():
    """Nor is the difference of such counts known exactly."""
    base, other = matrix_of(*(run(arm, seed) for arm in ("none", "a") for seed in (0, 1))).arms
    assert base.means["active"] == (75.0, None) and base.means["nll"][1] is not None
    assert other.changes["active"].over_seeds > 0 and other.changes["active"].p == 1.0


def test_the_first_arm_alone_has_no_verdicts():
    assert resolved_sentence(matrix_of(run("none", 0))) == "Only none is there, with 1 seed(s)."


def test_without_the_first_arm_there_is_nothing_to_differ_from():
    with pytest.raises(ConfigError, match="No run of none is finished"):
        build_matrix([run("a", 0)], {"none": {}, "a": {}}, {})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, matrix) of a page with an arm of one seed, several versions, and missing runs."""
    runs = [run("none", seed, nll=90 + seed) for seed in range(3)]
    runs += [run("a$b", seed, nll=89 + seed, information=5 + seed / 99) for seed in range(3)]
    runs += [run("context + <b>", 1, kl=(7.0, 1.0), code="another")]
    folder = tmp_path_factory.mktemp("matrix")
    missing = {"context + <b>, seed 0": "the loss is NaN", "context + <b>, seed 2": "not made yet"}
    matrix = matrix_of(*runs, missing=missing.items())
    write_matrix(matrix, folder, Terminal(shown=False))
    return folder, matrix


def test_the_page_says_what_is_resolved_missing_and_mixed(written):
    text = (written[0] / "matrix.html").read_text()
    assert "the loss is NaN" in text and "2 more runs are missing" in text
    assert "several versions of the code (another, c)" in text
    assert "helps: a$b; 1 of 2 arms are not resolved" in text
    assert "context + &lt;b&gt;" in text and "context + <b>" not in text
    for rule in ("helps:", "trades:", "pads:", "not resolved:", "Holm"):
        assert rule in text


def test_the_json_file_rebuilds_the_page_bit_for_bit(written):
    folder, matrix = written
    assert read_matrix(folder / "matrix.json") == matrix
    page = (folder / "matrix.html").read_bytes()
    (folder / "matrix.html").unlink()
    assert main([str(folder / "matrix.json")]) == 0
    assert (folder / "matrix.html").read_bytes() == page


def test_a_file_that_is_no_matrix_is_refused_in_a_sentence(tmp_path, capsys):
    (tmp_path / "matrix.json").write_text(json.dumps({"arms": 3}))
    with pytest.raises(ConfigError, match=r"matrix\.json holds no matrix: make it again"):
        read_matrix(tmp_path / "matrix.json")
    assert main([str(tmp_path / "matrix.json")]) == main([str(tmp_path / "none.json")]) == 1
    assert main([]) == 2
    assert capsys.readouterr().err.count("Error: ") == 2


def test_every_interval_is_said_to_be_one(written):
    """A ± stands only in tables whose caption says which."""
    matrix = written[1]
    tables = [matrix_tables.verdict_table(matrix), *matrix_tables.figures_tables(matrix)]
    tables += [*matrix_tables.differences_tables(matrix), matrix_tables.settings_table(matrix)]
    tables += [matrix_tables.runs_table(matrix)]
    shown = 0
    for table in tables:
        if any("±" in cell.text for row in table.rows for cell in row):
            assert "95 %" in table.caption
            shown += 1
        assert all(len(row) == len(table.columns) for row in table.rows)
    assert shown == 5


def test_its_figures_survive_a_matrix_of_one_run(tmp_path):
    matrix = matrix_of(run("none", 0))
    assert isinstance(matrix, Matrix)
    write_matrix(matrix, tmp_path, Terminal(shown=False))


def test_heat_maps_cut_nothing_off():
    for values in ([0.0, 76.1], [-0.99, 12.0], [0.0, 0.0]):
        norm = _logarithmic(np.array([[*values, np.nan]]))
        assert norm.vmin == min(values) and norm.vmax == max(1.0, *values)
