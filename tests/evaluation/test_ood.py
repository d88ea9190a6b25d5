"""Likelihood ratios over layers: what they are made of; how well a score tells two data sets."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from datasets.loaders import EvaluationBatches
from model.layers import last_conv
from model.noise import Noise, NoisePurpose
from tests.conftest import compose, randomised, shrunk
from utils.errors import ConfigError
from utils.evaluation.ood import Score, complexity, detect, layered_bounds, score_both
from utils.settings.build import build_model
from utils.settings.other_images import label, with_images_of
from utils.settings.schema.ood import Ood

IMAGES = torch.randint(0, 17, (9, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()


def small(experiment: str, *overrides: str):
    """A random model."""
    torch.manual_seed(0)
    settings = compose(experiment, *shrunk(experiment), *overrides)
    return randomised(build_model(settings), 0.05).eval()


def batches(images=IMAGES, size=4) -> EvaluationBatches:
    """In pieces, so that noise must go by image."""
    return EvaluationBatches(images, 16, size)


@pytest.mark.parametrize("experiment", ["digits_ladder", "digits_dct_ladder"])
@torch.no_grad()
def test_bounds_share_their_noise_and_are_those_of_the_passes(experiment):
    model = small(experiment)
    layers, x = model.num_latents, 2.0 * IMAGES / 16 - 1
    found = layered_bounds(model, batches(), 3, 2, lambda done: None)
    assert found["sample"].shape == found["mode"].shape == (9, layers + 1)
    for prior, temperature in (("sample", 1.0), ("mode", 0.0)):
        for k in (0, 1, layers):
            total = 0.0
            for sample in range(2):
                noise = Noise.keyed(torch.arange(9), 3, NoisePurpose.FOREIGN, sample)
                keep = [layer < layers - k for layer in range(layers)]
                output = model.infer(x, keep, noise=noise, prior_temperature=temperature)
                total = total - (output.reconstruction + output.kl.sum(1)).double()
            torch.testing.assert_close(found[prior][:, k], total / 2, rtol=1e-4, atol=1e-3)
    again = layered_bounds(model, batches(size=9), 3, 2, lambda done: None)
    torch.testing.assert_close(again["sample"], found["sample"], rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_layer_that_has_collapsed_adds_nothing_to_any_ratio():
    """Its posterior is its prior: with shared noise LLR>1 is 0, not a difference of two draws."""
    model = small("digits_ladder", "model.decoder.posterior=residual")
    lowest = last_conv(model.decoder.blocks[-1].posterior_net)
    lowest.weight.zero_(), lowest.bias.zero_()
    found = layered_bounds(model, batches(), 0, 1, lambda done: None)["sample"]
    torch.testing.assert_close(found[:, 1], found[:, 0], rtol=1e-5, atol=1e-4)
    assert (found[:, 2] - found[:, 0]).abs().min() > 1e-3


@torch.no_grad()
def test_the_mode_of_the_priors_takes_their_means():
    model = small("digits_ladder")
    x = 2.0 * IMAGES / 16 - 1
    keep = [True] + [False] * (model.num_latents - 1)
    output = model.infer(x, keep, noise=Noise.keyed(torch.arange(9)), prior_temperature=0.0)
    for latent in output.latents[1:]:
        assert torch.equal(latent.z, latent.p.mean)
    assert not torch.equal(output.latents[0].z, output.latents[0].q.mean)


def test_figures_are_scikit_learns_ties_included():
    generator = np.random.default_rng(0)
    inside, outside = generator.integers(0, 30, 80), generator.integers(8, 40, 120)
    found = detect(Score("s", torch.tensor(inside).double(), torch.tensor(outside).double()), 0)
    truth, values = np.repeat([0, 1], [80, 120]), np.concatenate([inside, outside])
    assert found.auroc.value == pytest.approx(roc_auc_score(truth, values))
    precision = average_precision_score(truth, values)
    assert found.average_precision.value == pytest.approx(precision)
    fpr, tpr, _ = roc_curve(truth, values, drop_intermediate=False)
    assert found.fpr80.value == pytest.approx(fpr[tpr >= 0.8][0])
    for interval in (found.auroc, found.average_precision, found.fpr80):
        assert interval.low < interval.value < interval.high
    width = found.auroc.high - found.auroc.low
    area, n = found.auroc.value, (80, 120)  # standard error after Hanley and McNeil (1982)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (n[1] - 1) * (q1 - area**2) + (n[0] - 1) * (q2 - area**2)
    assert width == pytest.approx(2 * 1.96 * (variance / (n[0] * n[1])) ** 0.5, rel=0.2)


def test_perfect_and_useless_scores():
    low, high = torch.arange(50).double(), torch.arange(50).double() + 100
    assert detect(Score("s", low, high), 0).auroc.value == 1.0
    assert detect(Score("s", low, high), 0).fpr80.value == 0.0
    assert detect(Score("s", high, low), 0).auroc.value == 0.0
    same = detect(Score("s", low * 0, low * 0), 0)
    assert (same.auroc.value, same.fpr80.value) == (0.5, 1.0)


def test_complexity_is_the_size_of_a_picture():
    noise = torch.randint(0, 256, (2, 3, 16, 16)).byte()
    flat = torch.full((2, 3, 16, 16), 7).byte()
    bits = complexity(torch.cat([flat, noise]))
    assert bits.shape == (4,) and bits[2:].min() > 3 * bits[:2].max()
    assert len(complexity(IMAGES)) == 9


@torch.no_grad()
def test_scores_of_both_sides():
    model = small("digits_dct_ladder")
    found = score_both(model, [batches(), batches(16 - IMAGES)], 0, 1, lambda done: None)
    names = [(score.name, score.prior) for score in found]
    ks = range(1, model.num_latents + 1)
    llr = [(f"LLR>{k}", prior) for prior in ("sample", "mode") for k in ks]
    assert names == [("PNG bits", None), ("−ELBO", None), *llr]
    assert {len(side) for score in found for side in (score.inside, score.outside)} == {9}


def other(experiment="mnist_ladder", **ood):
    """The settings of the other data set beside an experiment's."""
    settings = compose(experiment)
    return with_images_of(settings, Ood(**ood))


def test_the_other_data_set_has_the_models_shape():
    found = other(dataset="image_folder", root="photos").dataset
    assert (found.channels, found.image_size, found.root) == (1, 28, "photos")
    found = other("cifar_ladder", dataset="image_folder", root="photos").plain["dataset"]
    assert found["shape"] == [3, 32, 32]
    assert (
        other(dataset="kmnist").dataset.data_module == compose("mnist_ladder").dataset.data_module
    )
    assert other("cifar_ladder", dataset="cifar100").dataset.name == "cifar100"
    assert other("cifar_ladder", dataset="celeba").dataset.image_size == 32
    assert label(other(dataset="omniglot"), Ood(invert=True)) == "omniglot_inverted"


@pytest.mark.parametrize(
    ("ood", "complaint"),
    [
        ({}, r"ood.dataset is not set: task=ood needs ood.dataset="),
        ({"dataset": "nope"}, r"ood.dataset=nope is not a choice: use one of celeba, cifar10"),
        ({"dataset": "cifar10"}, r"3×32×32 with 256 levels, the model's are of 1×28×28"),
        ({"dataset": "digits"}, r"1×8×8 with 17 levels"),
        ({"dataset": "image_folder"}, r"ood.root is not set: ood.dataset=image_folder needs"),
        ({"dataset": "custom"}, r"ood.dataset=custom leaves open _target_, image_size"),
        ({"dataset": "digits", "root": "x"}, r"ood.root=x is not read by dataset=digits"),
    ],
)
def test_what_does_not_fit_is_refused(ood, complaint):
    with pytest.raises(ConfigError, match=complaint):
        other(**ood)
