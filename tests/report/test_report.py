"""The collapse report: its figures add up, its page needs nothing else, its verdicts are fair."""

import re

import pytest
import torch

from tests.report.conftest import Page
from utils.evaluation.collapse import THRESHOLDS
from utils.evaluation.probes import Gain
from utils.report import collapse_page
from utils.report.content import Ablation, LayerReport, ReportContent
from utils.report.drawing import INK
from utils.report.probes_section import passive_layers, probes_section


def test_layers_add_up(written):
    _, content, _ = written
    layers, bound = content["layers"], content["bound"]
    assert len(layers) == (7 if content["context"] else 6)
    assert sum(row["kl_share"] for row in layers) == pytest.approx(1)
    assert layers[-1]["kl_cumulative_share"] == pytest.approx(1)
    whole = bound["reconstruction"] + sum(row["kl"] for row in layers)
    assert whole == pytest.approx(bound["nelbo"])
    for row in layers:
        units = row["per_unit"]
        assert sum(units["kl"]) == pytest.approx(row["kl"], rel=1e-5, abs=1e-5)
        assert row["kl_bits"] * 0.6931472 == pytest.approx(row["kl"])
        assert len(units["kl"]) == row["units"] == torch.Size(row["shape"]).numel()
        assert sum(units["kl_share"]) == pytest.approx(row["kl_share"], abs=1e-6)
        assert sum(units["kl_bits"]) == pytest.approx(row["kl_bits"], rel=1e-5, abs=1e-5)
        assert row["active"] == sum(v > 0.01 for v in units["variance"])
        assert row["active_low"] <= row["active"] <= row["active_high"]
        counts = [count for count, _, _ in row["active_by_threshold"]]
        assert counts == sorted(counts, reverse=True) and len(counts) == len(THRESHOLDS)
        collapsed = row["collapsed_by_epsilon"]
        assert collapsed == sorted(collapsed) and collapsed[-1] == row["units"]
    reached = [(k, c) for row in layers for k, c in _pairs(row["per_unit"])]
    shares = [c for _, c in sorted(reached, key=lambda pair: -pair[0])]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert [row["kept"] for row in content["top_kept"]] == list(range(len(layers) + 1))
    assert content["top_kept"][-1]["lost"] == 0
    assert layers[-1]["without"]["nelbo"] == content["top_kept"][-2]["nelbo"]


def test_rates_and_distortions_and_images_by_kl(written):
    _, content, _ = written
    layers, kept = content["layers"], content["top_kept"]
    for row in kept:
        assert row["rate"] + row["reconstruction"] == pytest.approx(row["nelbo"])
    assert kept[0]["rate"] == 0
    for row in layers:
        by_image = row["by_image"]
        assert by_image["quantiles"] == sorted(by_image["quantiles"])
        assert len(by_image["least"]) == len(by_image["most"]) == 5
        quiet = row["per_unit"]["quiet_share"]
        assert row["mixed"] == sum(0.05 <= share <= 0.95 for share in quiet)


def test_probes_are_on_the_page(written):
    _, content, text = written
    probes = content["probes"]
    assert (probes["images"], probes["classes"], content["without_probes"]) == (30, 3, None)
    assert len(probes["alone"]) == len(probes["cumulated"]) == len(content["layers"])
    assert probes["alone"][0]["untrained"] is not None
    page = Page(text).text
    assert f"{probes['pixels']['linear']['value']:.1%}" in page and "chance" in page
    if content["context"]:  # a context is not learned: the untrained model has the same
        assert probes["alone"][0]["untrained"] == probes["alone"][0]["linear"]


def test_a_passive_layer_that_helps_is_named(written):
    _, content, _ = written
    report = ReportContent.model_validate(content)
    quiet = [row.model_copy(update={"active": 0, "kl_share": 0.0}) for row in report.layers]
    gains = [None, *(Gain(value=0.1, se=0.01 if n == 1 else 0.2) for n in range(1, len(quiet)))]
    probes = report.probes.model_copy(update={"gains": gains})
    (sentence,) = passive_layers(report.model_copy(update={"layers": quiet, "probes": probes}))
    assert sentence.startswith("Layer 1 is passive") and "adds 10.0 ± 2.0 points" in sentence
    none = report.model_copy(
        update={"probes": None, "without_probes": "The data set has no labels."}
    )
    assert probes_section(none).paragraphs == ["No probes: The data set has no labels."]


def _pairs(units: dict) -> list[tuple[float, float]]:
    """KL and cumulative share of each unit."""
    return list(zip(units["kl"], units["kl_cumulative_share"], strict=True))


def test_every_picture_is_there_as_a_file(written):
    folder, content, _ = written
    names = {"layers", "active_units", "collapsed_units", "kl_maps", "interventions"}
    names |= {"information", "aggregates", "samples", "samples_fixed_top", "reconstructions"}
    names |= {"reconstructions_top", "rate_distortion", "images_by_kl"}
    names |= {"context", "diffusion"} if content["context"] else set()
    found = {path.stem for path in folder.glob("*.png")}
    assert names <= found <= names | {"traversals"}
    for path in folder.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 2000


def test_the_page_stands_alone(written):
    """One file: no link but to its own headings, no script or style from elsewhere."""
    folder, _, text = written
    page = Page(text)
    assert page.open == []
    for name, value in page.attributes:
        if name in ("href", "src", "xlink:href", "data"):
            assert value.startswith(("#", "data:image/png;base64,")), value
    assert "@import" not in text and "url(http" not in text
    assert page.tags.count("figure") == len(list(folder.glob("*.png")))
    assert INK not in text and "currentColor" in text  # drawings take the page's colours
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_page_says_what_was_evaluated_and_how(written):
    _, content, text = written
    page = Page(text).text
    assert f"{content['name']}: what each layer carries" in page
    assert "30 test images of digits" in page and content["protocol"] in page
    for entry in content["likelihoods"]:
        assert entry["estimator"] in page and f"{entry['nll']:,.2f}" in page
    for row in content["layers"]:
        assert row["verdict"] in page


def test_a_name_is_text_and_never_markup(written):
    _, content, _ = written
    named = ReportContent.model_validate({**content, "name": "<b>x</b>"})
    sections = collapse_page.sections(named, {}, {}, {})
    from utils.report.page import TEMPLATE, write_page

    assert TEMPLATE.exists()
    path = write_page(written[0] / "other.html", "<script>alert(1)</script>", ["<b>"], sections)
    text = path.read_text()
    path.unlink()
    assert "<script>alert" not in text and "&lt;b&gt;" in text


def layer(kl=1.0, active=8, units=16, lost=1.0, error=0.1, share=0.3, context=False) -> LayerReport:
    """A layer with the figures that its verdict is about."""
    without = Ablation.model_construct(lost=lost, lost_se=error / 1.96)
    figures = {"layer": 3, "context": context, "kl": kl, "units": units, "active": active}
    return LayerReport.model_construct(**figures, kl_share=share, without=without)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            layer(kl=0.04, active=0, units=49, lost=0.01, error=0.02),
            "Layer 3 has collapsed: 0.04 nats, 0 of 49 units active; without it the bound is the "
            "same within 0.03 nats.",
        ),
        (layer(lost=0.0, error=0.0), "without it the bound is the same within 0.01 nats."),
        (
            layer(kl=23.1, active=48, units=49, lost=130.2, error=2.1, share=0.47, context=True),
            "The context is active: 23.10 nats, 48 of 49 units active, 47.0% of the KL; without it "
            "the bound is 130.20 ± 2.10 nats worse.",
        ),
        (layer(active=1, units=49), "Layer 3 has mostly collapsed: 1.00 nats, 1 of 49 units"),
        (layer(share=0.01), "Layer 3 carries little: 1.00 nats"),
        (
            layer(kl=18.57, active=0, units=8192),
            "Layer 3 has collapsed: 18.57 nats, which are 0.002 nats per unit, 0 of 8,192 units",
        ),
        (layer(active=0), "Layer 3 costs 1.00 nats yet has none of its 16 units active"),
        (layer(lost=-0.5), "without it the bound is 0.50 ± 0.10 nats better."),
    ],
)
def test_verdicts(row, sentence):
    assert sentence in row.verdict
