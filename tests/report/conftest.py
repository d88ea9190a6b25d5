"""A small model's report, made once, and a parser of its page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from datasets.loaders import EvaluationBatches
from tests.conftest import compose, made_once, randomised, shrunk
from utils.evaluation import scoring
from utils.processes.job import Job
from utils.processes.launch import Processes
from utils.report.collapse_report import write_report
from utils.settings.build import build_model
from utils.terminal import Terminal

IMAGES = torch.randint(0, 17, (30, 1, 8, 8), generator=torch.Generator().manual_seed(1)).byte()
LABELS = torch.arange(30) % 3
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "use"}


class Page(HTMLParser):
    """Tags that are open, links, texts; fails on a tag closed out of order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


PLAIN = pytest.param("digits_ladder", marks=pytest.mark.slow)


@pytest.fixture(scope="session", params=[PLAIN, "digits_dct_ladder"])
def written(request, tmp_path_factory):
    """(folder, content, page) of a small model's report."""

    def make(folder: Path) -> None:
        settings = compose(request.param, *shrunk(request.param), "task.mi_images=10")
        torch.manual_seed(0)
        model = randomised(build_model(settings), 0.05).eval()
        checkpoint = folder / "best.pth"
        checkpoint.write_bytes(b"weights")
        batches = EvaluationBatches(IMAGES, 16, 30, labels=LABELS)
        job = Job(Processes(), torch.device("cpu"), Terminal(False))
        score = scoring.score(model, settings, batches, "test", checkpoint, "digest", job.terminal)
        paths = write_report(model, score, settings, batches, folder, job)
        assert sorted(paths) == sorted(folder.glob("*.png"))

    folder = made_once(tmp_path_factory, f"report_{request.param}", make)
    content = json.loads((folder / "report.json").read_text())
    return folder, content, (folder / "report.html").read_text()
