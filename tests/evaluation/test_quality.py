"""FID and reconstruction error: right where the weights are, a message where they are not."""

import dataclasses
import math
import sys

import pytest
import torch
from torch import nn

from datasets.loaders import EvaluationBatches
from tests.conftest import compose, randomised, shrunk
from utils import terminal as terminal_module
from utils.evaluation import quality, scoring
from utils.evaluation.quality import prepare
from utils.processes.job import Job
from utils.processes.launch import Processes
from utils.settings.build import build_model
from utils.settings.schema.train import Train

IMAGES = torch.randint(0, 17, (30, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
BATCHES = EvaluationBatches(IMAGES, 16, 12)
CPU = torch.device("cpu")


class Lines:
    """A terminal that remembers."""

    def __init__(self):
        self.lines = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def asked(**changes) -> Train:
    """The settings under train."""
    train = compose("digits_ladder", "train.compute_fid=true").train
    return train.model_copy(update=changes)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """An empty cache of weights, and nothing to fill it from."""

    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def small():
    """A small random model."""
    torch.manual_seed(0)
    model = build_model(compose("digits_ladder", *shrunk("digits_ladder")))
    return randomised(model, 0.05).eval()


def test_nothing_is_made_unless_asked():
    assert prepare(asked(compute_fid=False), CPU, Lines()) is None


def test_without_weights_there_is_a_message_and_the_reconstruction_error(no_network):
    terminal, model = Lines(), small()
    found = prepare(asked(), CPU, terminal)
    assert len(terminal.lines) == 1
    for words in ("Without FID", "weights-inception-2015-12-05-6726825d.pth", "train.fid_weights"):
        assert words in terminal.lines[0]
    measured = found.measure(model, BATCHES, 0, lambda n: None)
    assert set(measured.model_dump()) == {"reconstruction_mse", "reconstruction_psnr"}
    squares = []
    with torch.no_grad():
        for batch in BATCHES:
            noise = quality.Noise.keyed(batch.ids, 0, quality.NoisePurpose.QUALITY)
            mean = model.reconstruct(batch.x, model.num_latents, noise=noise)
            squares.append(((mean - batch.x) / 2).square().flatten())
    mse = torch.cat(squares).mean().item()
    assert measured.reconstruction_mse == pytest.approx(mse, rel=1e-5)
    assert measured.reconstruction_psnr == pytest.approx(-10 * math.log10(mse), rel=1e-5)


@pytest.mark.parametrize("missing", ["torchmetrics", "torch_fidelity"])
def test_without_the_packages_there_is_a_message(no_network, monkeypatch, missing):
    for name in [name for name in sys.modules if name.partition(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    terminal = Lines()
    found = prepare(asked(), CPU, terminal)
    assert (found is None) == (missing == "torchmetrics")
    assert "[quality]" in terminal.lines[0] and missing in terminal.lines[0]


def test_wrong_weights_are_refused_before_anything_runs(tmp_path):
    path = tmp_path / "weights.pth"
    with pytest.raises(ValueError, match=r"train\.fid_weights=.*is not a file"):
        prepare(asked(fid_weights=str(path)), CPU, Lines())
    torch.save({"conv": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"train\.fid_weights=.*SHA-256 begins with"):
        prepare(asked(fid_weights=str(path)), CPU, Lines())
    torch.save({"run": Lines()}, path)
    with pytest.raises(ValueError, match="holds more than tensors"):
        prepare(asked(fid_weights=str(path)), CPU, Lines())


def test_trouble_in_the_metrics_leaves_the_scores(tmp_path):
    class Broken:
        def measure(self, *args):
            raise RuntimeError("out of memory")

    class Terminal(Lines, terminal_module.Terminal):
        def __init__(self):
            terminal_module.Terminal.__init__(self, False)
            Lines.__init__(self)

    terminal, checkpoint = Terminal(), tmp_path / "best.pth"
    checkpoint.write_bytes(b"weights")
    settings = compose("digits_ladder", *shrunk("digits_ladder"), "task.estimators=[]")
    found = scoring.score(small(), settings, BATCHES, "test", checkpoint, "", terminal, Broken())
    assert found.record.quality is None and found.record.bound.images == 30
    assert "Without FID and reconstruction error: out of memory" in terminal.lines


@pytest.mark.slow
def test_fid_of_random_weights_by_the_real_network(tmp_path, monkeypatch):
    """Between the images and samples; and with the very images as samples, close to nothing."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    network = inception.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:  # the network itself, without its weights
        patch.setattr(inception, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(network, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        path = tmp_path / "weights.pth"
        torch.save(network("any", ["2048"]).state_dict(), path)
    found = prepare(asked(fid_weights=str(path)), CPU, Lines())
    model = small()
    measured = found.measure(model, BATCHES, 0, lambda n: None)
    assert measured.fid > 0 and measured.fid_samples == 30
    assert len(measured.fid_weights) == 8
    again = found.measure(model, BATCHES, 0, lambda n: None)
    assert again.fid == pytest.approx(measured.fid, rel=1e-3)
    monkeypatch.setattr(model, "sample", lambda n, noise: BATCHES.examples(30)[:n])
    few = EvaluationBatches(IMAGES, 16, 30)
    assert found.measure(model, few, 0, lambda n: None).fid < 0.01 * measured.fid


def test_a_process_without_images_adds_none(no_network):
    """Of several processes it takes part in the sums; there are none of one sample for FID."""
    metrics = dataclasses.replace(prepare(asked(), CPU, Lines()), fid=NoEmptyBatches())
    of_none = EvaluationBatches(IMAGES[:1], 16, 12, rank=1, world=2)
    found = metrics.measure(small(), of_none, 0, lambda count: None)
    assert found.fid is None and math.isnan(found.reconstruction_mse)


class NoEmptyBatches:
    """In place of FID, whose network takes none."""

    def reset(self) -> None:
        pass

    def update(self, images, real: bool) -> None:
        raise RuntimeError("an empty batch")


@pytest.mark.parametrize(
    ("others", "kept", "said"),
    [
        ((True, True), None, "Without FID and reconstruction error: another process"),
        ((False, True), "errors", "Without FID: another process"),
        ((False, False), "all", None),
    ],
)
def test_what_one_process_lacks_all_do_without(monkeypatch, others, kept, said):
    """Else those that have it would wait for it in its sums."""
    found, terminal = quality.QualityMetrics(nn.Identity(), "1234", None, None), Lines()
    monkeypatch.setattr(quality, "prepare", lambda *_: found)
    monkeypatch.setattr(
        quality, "agree", lambda *flags: [a or b for a, b in zip(flags, others, strict=True)]
    )
    together = quality.prepare_alike(asked(), Job(Processes(), CPU, terminal))
    assert (
        together
        == {
            None: None,
            "errors": dataclasses.replace(found, fid=None, weights=None),
            "all": found,
        }[kept]
    )
    assert terminal.lines == [] if said is None else terminal.lines[0].startswith(said)
