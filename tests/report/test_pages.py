"""Pages and drawings: read by everyone, at every width, with every figure's unit and interval."""

import re
from itertools import pairwise

import pytest

from tests.conftest import ROOT
from tests.report.conftest import Page
from utils.evaluation.collapse import Z_95
from utils.report import collapse_page, layer_plots, plots
from utils.report.content import ReportContent, called
from utils.report.glossary import GLOSSARY
from utils.report.page import Section, write_page
from utils.report.panels import _moved_apart
from utils.table import number, signed, with_error

DIMENSIONLESS = {"split", "estimator", "K", "paths", "ESS", "layer", "", "shape", "units", "unit"}
DIMENSIONLESS |= {"active units", "interval", "collapsed", "k", "residual", "mixed units"}
DIMENSIONLESS |= {"least: image", "most: image", "ceiling"}


@pytest.fixture(scope="module")
def content(written):
    return ReportContent.model_validate(written[1])


def collapsed(content: ReportContent, layer: int) -> ReportContent:
    """The report, had the layer of that number collapsed."""
    layers = list(content.layers)
    layers[layer] = layers[layer].model_copy(update={"kl": 0.0002, "active": 0})
    return content.model_copy(update={"layers": layers})


def test_every_interval_is_of_95_percent(written, content):
    """Standard errors stand in report.json alone."""
    page = Page(written[2]).text
    assert "standard error" not in page and "Every ± and every interval is 95" in page
    for estimate in content.likelihoods:
        assert f"{estimate.nll:.2f} ± {Z_95 * estimate.nll_se:.2f}" in page
    for layer in content.layers:
        cells = [
            with_error(layer.information.value, Z_95 * layer.information.se, 3),
            with_error(layer.without.lost, Z_95 * layer.without.lost_se),
            number(Z_95 * layer.kl_se, 3),
        ]
        assert all(cell.text in page for cell in cells)


def test_every_column_has_its_unit(content):
    for section in collapse_page.sections(content, {}, {}, {}):
        for table in section.tables if section.title != "Probes" else ():
            for column in table.columns:
                named = column.name in DIMENSIONLESS or re.search(r"nats|bits", column.name)
                assert named or column.unit, (table.caption, column.name)


def test_every_figure_has_its_finding_as_text(written, content):
    """The text alternative is there for all to read, and made from the figures."""
    text = written[2]
    labels = re.findall(r'role="img" aria-labelledby="(\w+)"', text)
    assert len(set(labels)) == text.count("<figure>")
    for label in labels:
        assert re.search(rf'<span id="{label}">[^<]+\d[^<]+</span>', text), label
    largest = max(content.layers, key=lambda layer: layer.kl)
    assert f"{called(largest)} has the most, {largest.kl:.2f}" in text


def test_plots_have_a_drawing_for_narrow_pages_with_legible_letters(written):
    text = written[2]
    found = re.findall(r'<div class="(wide|narrow)" role="img"[^>]*>(<svg.*?</svg>)', text, re.S)
    assert len(found) == text.count("<svg") and text.count('class="narrow"') == len(found) / 2
    for kind, drawing in found:
        width = float(re.search(r'<svg[^>]*? width="([\d.]+)pt"', drawing)[1])
        assert width < {"wide": 850, "narrow": 370}[kind]  # points: 1,130 and 490 pixels
        letters = re.sub(r"<tspan.*?</tspan>", "", drawing)  # exponents
        assert min(map(float, re.findall(r"font-size: ([\d.]+)px", letters))) >= 8


def test_layers_are_dots_on_linear_axes(content):
    layers = plots.draw_layers(content).figure.axes
    ablated = layer_plots.draw_interventions(content).figure.axes[1]
    for axes in (*layers, ablated):
        assert axes.get_xscale() == "linear" and not axes.patches
        assert len(axes.containers) == len(content.layers)


def test_kl_maps_share_a_scale_and_a_collapsed_layer_is_grey(content):
    drawn = collapsed(content, 1)
    drawing = plots.draw_kl_maps(drawn)
    panel = drawing.figure.axes[: len(content.layers)]
    images = [axes.get_images() for axes in panel]
    grey = [layer.layer for layer in drawn.layers if layer.has_collapsed]
    assert [n for n, own in enumerate(images) if not own] == grey and 1 in grey
    assert len({own[0].norm for own in images if own}) == 1
    assert "collapsed" in [text.get_text() for text in panel[1].texts]
    assert "layer 1" in drawing.text.partition("Grey, because collapsed: ")[2]


def test_kl_maps_of_a_model_that_has_collapsed_altogether(content):
    for layer in range(len(content.layers)):
        content = collapsed(content, layer)
    drawing = plots.draw_kl_maps(content)
    assert drawing.text == "Every layer has collapsed."
    assert not any(axes.get_images() for axes in drawing.figure.axes)


def test_tables_scroll_by_keyboard_and_say_so(written):
    """Each is a region that takes the focus; a line shows when there is more than fits."""
    text = written[2]
    regions = re.findall(r'role="region" tabindex="0" aria-labelledby="(\w+)"', text)
    assert len(regions) == text.count("<table") == text.count('class="cue"')
    ids = re.findall(r' id="([^"]+)"', text)
    assert set(regions) <= set(ids) and ' title="' not in text


def test_rows_of_images_are_images_with_labels(written):
    """Not one drawing, whose letters would shrink with the page."""
    figure = next(part for part in written[2].split("<figure>") if "Samples from the prior" in part)
    assert figure.count("<img") == 4 and "<svg" not in figure
    assert "temperature 0.25</span>" in figure and "all temperatures share their noise" in figure


def test_the_glossary_is_the_same_on_the_page_and_in_the_docs(written):
    docs = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"^\*\*(.+?)\*\*: (.+?)$", docs.replace("\n  ", " "), re.M))
    assert found == GLOSSARY
    page = Page(written[2])
    assert page.tags.count("dt") == len(GLOSSARY) and all(word in page.text for word in GLOSSARY)


def test_the_checkpoint_is_named_wherever_the_page_is_moved(written, content):
    named = content.model_copy(update={"checkpoint": "../there/run-1/checkpoints/best.pth"})
    fingerprint = content.checkpoint_digest
    assert named.checkpoint_name == f"best.pth of run-1 (SHA-256 {fingerprint}…)"
    elsewhere = content.model_copy(update={"checkpoint": "x/a.pth", "checkpoint_digest": ""})
    assert elsewhere.checkpoint_name == "a.pth"
    assert content.checkpoint_name in Page(written[2]).text and "../" not in Page(written[2]).text


def test_negative_numbers_have_a_minus():
    texts = [number(-1.5).text, signed(-1.5).text, with_error(-1.5, 0.25).text]
    assert texts == ["−1.50", "−1.50", "−1.50 ± 0.25"]
    assert number(-0.0001).text == "0.00" and signed(-0.0001).text == "+0.00"


@pytest.mark.parametrize("positions", [[0.5, 0.5, 0.5], [0.99, 1.0, 0.98], [0.0, 1.0], [0.3]])
def test_names_beside_lines_do_not_overlap(positions):
    moved = _moved_apart(positions, 0.1)
    ordered = sorted(moved)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(ordered))
    assert max(moved) <= 1.0


def test_a_page_says_percentages_without_a_break(tmp_path):
    page = write_page(tmp_path / "p.html", "t", ["of 95 %, over images"], [Section("s")])
    assert "of 95\N{NO-BREAK SPACE}%, over images" in page.read_text(encoding="utf-8")
