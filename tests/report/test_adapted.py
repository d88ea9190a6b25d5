"""Somebody else's models: figures, report, probes, scores of foreign images, comparison."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from model.adapter import AdaptedVAE
from model.noise import Noise
from tests.conftest import ROOT, compose
from utils.evaluation.compared_runs import cached_run
from utils.report.adapted import Subject, report, tell_apart
from utils.report.comparison import write_comparison
from utils.terminal import Terminal

IMAGES = torch.randint(0, 2, (40, 1, 4, 4), generator=torch.Generator().manual_seed(1)).byte()
SUBJECT = Subject(IMAGES, "squares", max_value=1, labels=torch.arange(40) % 2)
X = 2.0 * IMAGES.float() - 1.0


class TwoLayers(nn.Module):
    """A plain VAE with two layers, in PyTorch alone: p(z2) p(z1 | z2) p(x | z1)."""

    layer_names = ("z2", "z1")

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU())
        self.q2, self.q1 = nn.Linear(32, 2 * 3), nn.Linear(32 + 3, 2 * 5)
        self.p1, self.px = nn.Linear(3, 2 * 5), nn.Linear(5, 16)

    def infer(self, x, keep, means):
        h, layers = self.features(x), []
        q = [lambda _: normal(self.q2(h)), lambda z: normal(self.q1(torch.cat([h, z], 1)))]
        z = None
        for layer in range(2):
            p = self.prior(layer, z, len(x))
            posterior = q[layer](z) if keep[layer] else None
            drawn_from = posterior or p
            z = drawn_from.mean if means[layer] else drawn_from.sample()
            layers.append((z, posterior, p))
        return self.image(z), layers

    def generate(self, n, given):
        z = None
        for layer in range(2):
            z = given[layer] if layer < len(given) else self.prior(layer, z, n).sample()
        return self.image(z)

    def prior(self, layer, z, n):
        return normal(self.p1(z)) if layer else Normal(torch.zeros(n, 3), torch.ones(n, 3))

    def image(self, z):
        return Pixels(Bernoulli(logits=self.px(z).view(-1, 1, 4, 4)))


class Pixels:
    """Bernoulli pixels of images in {−1, 1}."""

    def __init__(self, bits):
        self.bits, self.mean = bits, 2.0 * bits.mean - 1.0

    def log_prob(self, x):
        return self.bits.log_prob((x > 0).float())


def normal(raw):
    """From means and log standard deviations."""
    mean, log_std = raw.chunk(2, dim=1)
    return Normal(mean, log_std.exp())


class LinearLadder:
    """z2 ~ N(0, I), z1 = A z2 + a, x = B z1 + b with Gaussian noise, and the exact posterior.

    Draws at the means are not offered: `infer` has no `means`.
    """

    layer_names = ("top", "bottom")

    def __init__(self, size=4, exact=True):
        generator = torch.Generator().manual_seed(0)
        self.a = torch.randn(3, 2, generator=generator).double()
        self.b = torch.randn(size * size, 3, generator=generator).double()
        self.size, self.shift = size, 0.0 if exact else 0.3

    def prior1(self, z2):
        return Normal(z2 @ self.a.T, 0.5)

    def image(self, z1):
        mean = (z1 @ self.b.T).view(-1, 1, self.size, self.size)
        return Normal(mean, 0.7)

    def evidence(self, x):
        """log p(x): (B,) nats."""
        of_z1 = self.a @ self.a.T + 0.25 * torch.eye(3)
        covariance = self.b @ of_z1 @ self.b.T + 0.49 * torch.eye(self.size**2)
        return MultivariateNormal(torch.zeros(self.size**2).double(), covariance).log_prob(
            x.flatten(1)
        )

    def infer(self, x, keep):
        flat = x.double().flatten(1)
        whole = torch.cat([self.b @ self.a, self.b * 0.5], 1)  # x = whole (z2, e) + noise
        precision = torch.eye(5) + whole.T @ whole / 0.49
        mean = torch.linalg.solve(precision, whole.T @ flat.T / 0.49).T
        # Of z2 the marginal in the element-wise family that q is restricted to.
        q2 = Normal(mean[:, :2] + self.shift, torch.linalg.inv(precision).diagonal()[:2].sqrt())
        p2 = Normal(torch.zeros_like(q2.mean), torch.ones_like(q2.mean))
        z2 = (q2 if keep[0] else p2).sample()
        p1 = self.prior1(z2)
        of_e = torch.eye(3) * 4.0 + self.b.T @ self.b / 0.49
        given = torch.linalg.solve(of_e, (4.0 * p1.mean + flat @ self.b / 0.49).T).T
        q1 = Normal(given, torch.linalg.inv(of_e).diagonal().sqrt())
        z1 = (q1 if keep[1] else p1).sample()
        return self.image(z1), [(z2, q2 if keep[0] else None, p2), (z1, q1, p1)]

    def generate(self, n, given):
        z2 = given[0] if given else torch.randn(n, 2).double()
        return self.image(given[1] if len(given) > 1 else self.prior1(z2).sample())


def two_layers(seed=0) -> TwoLayers:
    """With random weights."""
    torch.manual_seed(seed)
    return TwoLayers()


def noise(rows=40, salt=0) -> Noise:
    """Streams of the images."""
    return Noise.keyed(torch.arange(rows), salt)


@torch.no_grad()
def test_the_linear_ladders_evidence_is_met_and_bounded():
    """By 500 importance samples; the bound lies below, and keeping fewer layers costs."""
    ladder = LinearLadder()
    model, x = AdaptedVAE(ladder, (1, 4, 4)), X.double()
    exact = ladder.evidence(x)
    estimate, ess = model.estimate(x, 500, noise=noise())
    assert (estimate - exact).abs().mean() < 0.5 and (ess > 1).all()
    bounds = []
    for keep in ([True, True], [True, False], [False, False]):
        draws = [model.infer(x, keep, noise=noise(salt=salt)) for salt in range(30)]
        bounds.append(
            torch.stack([-(d.reconstruction + d.kl.sum(1)) for d in draws]).mean(0).mean()
        )
    assert exact.mean() > bounds[0] > bounds[1] > bounds[2]


@torch.no_grad()
def test_layers_kept_share_their_draws_and_the_generator_is_left_alone():
    model, before = AdaptedVAE(two_layers(), (1, 4, 4)), torch.get_rng_state()
    whole, top = (model.infer(X, keep, noise=noise()) for keep in ([True, True], [True, False]))
    assert torch.equal(whole.latents[0].z, top.latents[0].z)
    assert not torch.equal(whole.latents[1].z, top.latents[1].z)
    assert (top.kl[:, 1] == 0).all() and (whole.kl > 0).all()
    assert torch.equal(torch.get_rng_state(), before)
    layers = model.latents(X, noise=noise())
    assert torch.equal(model.decode(layers).mean, whole.px.mean)
    still = model.latents(X, temperature=0)
    assert torch.equal(still[1].sample, still[1].mean)
    assert model.interpolate(X[:2], X[2:4], [0], 3).shape == (3, 2, 1, 4, 4)
    kl = math.fsum(layer.kl.sum().item() for layer in layers)
    assert kl == pytest.approx(whole.kl.sum().item(), rel=1e-5)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """By name, the folder of each model's report."""
    folder = tmp_path_factory.mktemp("adapted")
    report(two_layers(), SUBJECT, folder / "mine", "mine", two_layers(1), num_samples=5)
    report(LinearLadder(), SUBJECT, folder / "theirs", "theirs", num_samples=5)
    return {name: folder / name for name in ("mine", "theirs")}


@pytest.mark.parametrize(
    ("name", "layers"), [("mine", TwoLayers.layer_names), ("theirs", LinearLadder.layer_names)]
)
def test_the_report_has_probes_and_the_models_own_names(reports, name, layers):
    folder = reports[name] / "report"
    content = json.loads((folder / "report.json").read_text())
    names = [f"{number} ({layer})" for number, layer in enumerate(layers)]
    assert [layer["name"] for layer in content["layers"]] == names
    assert content["probes"]["images"] == 40 and content["likelihoods"][0]["estimator"] == "iwae"
    assert (content["probes"]["alone"][0]["untrained"] is None) == (name == "theirs")
    assert [row["kept"] for row in content["top_kept"]] == [0, 1, 2]
    text = (folder / "report.html").read_text()
    assert names[0] in text and "Information" not in text and "Probes" in text
    pictures = {path.stem for path in folder.glob("*.png")}
    assert {"layers", "kl_maps", "rate_distortion", "images_by_kl", "samples"} <= pictures


@pytest.mark.parametrize("vae", [two_layers(), LinearLadder()], ids=["two layers", "linear"])
def test_foreign_images(vae, tmp_path):
    outside = Subject(1 - IMAGES, "negatives", max_value=1)
    assert tell_apart(vae, SUBJECT, outside, tmp_path / "ood", "mine").exists()
    found = json.loads((tmp_path / "ood" / "ood.json").read_text())["detections"]
    priors = ("sample",) if isinstance(vae, LinearLadder) else ("sample", "mode")
    llr = [(f"LLR>{k}", prior) for prior in priors for k in (1, 2)]
    assert [(one["score"], one["prior"]) for one in found[2:]] == llr


def test_comparison_takes_the_folder_of_somebody_elses_model(reports, tmp_path):
    task = compose("digits_ladder", "task=compare").task
    runs = [cached_run(str(folder), task, str(tmp_path), ()) for folder in reports.values()]
    page = write_comparison(runs, tmp_path / "compare", Terminal(False))
    text = page.read_text()
    assert "mine" in text and "theirs" in text
    with np.load(reports["mine"] / "test_scores.npz") as arrays:
        assert arrays["kl"].shape == (40, 2) and arrays["nll_iwae"].shape == (40,)


def test_the_documented_model_works():
    """The first block of docs/your_model.md, as it stands."""
    code = (ROOT / "docs" / "your_model.md").read_text().split("```python\n")[1].split("```")[0]
    namespace = {}
    exec(code, namespace)
    torch.manual_seed(0)
    model, x = AdaptedVAE(namespace["TwoLayers"](), (1, 28, 28)), torch.rand(3, 1, 28, 28)
    output = model.infer(x, [True, False], noise=noise(3))
    assert output.reconstruction.shape == (3,) and (output.kl[:, 1] == 0).all()
    assert model.generate(2).mean.shape == (2, 1, 28, 28)


def broken(**changes):
    """A model of one layer, with something wrong."""

    class Broken:
        layer_names = changes.get("layer_names", ("z",))

        def infer(self, x, keep):
            z = torch.zeros(len(x), 3)
            q = changes.get("q", Normal(torch.zeros(len(x), 3), 1.0))
            px = changes.get("px", Normal(torch.zeros_like(x), 1.0))
            return px, [(z, q, Normal(torch.zeros(len(x), 3), 1.0))]

    return Broken()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layer_names": ("a", "b")}, "returned 1 layers, layer_names has 2"),
        ({"q": None}, "returned no q of z"),
        ({"q": Independent(Normal(torch.zeros(2, 3), 1.0), 1)}, "element by element"),
        ({"px": Normal(torch.zeros(2, 5), 1.0)}, "in the images' shape"),
    ],
)
def test_a_model_that_says_something_else_gets_one_sentence(changes, complaint, tmp_path):
    with pytest.raises(ValueError, match=complaint):
        report(broken(**changes), SUBJECT, tmp_path / "here", "mine")
    assert not (tmp_path / "here").exists()


def test_subjects_that_do_not_fit_get_one_sentence(tmp_path):
    other = Subject(IMAGES[:3], "few", max_value=1)
    with pytest.raises(ValueError, match="give as many of the same kind"):
        tell_apart(two_layers(), SUBJECT, other, tmp_path / "here", "mine")
    with pytest.raises(ValueError, match="give uint8"):
        report(two_layers(), Subject(X, "squares"), tmp_path / "here", "mine")
    model = AdaptedVAE(two_layers(), (1, 4, 4))
    with pytest.raises(ValueError, match="leave out the temperature"):
        model.decode([torch.zeros(2, 3, 1, 1)], temperature=0.5)
    assert not (tmp_path / "here").exists()
