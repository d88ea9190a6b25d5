"""Small trainers, and what they leave behind."""

import json

import torch

from datasets.loaders import EvaluationBatches, TrainBatches
from tests.commands import TIMED
from tests.conftest import compose, shrunk
from utils.processes.launch import Processes
from utils.runs.background import Saver
from utils.runs.signals import Signals
from utils.settings import build
from utils.terminal import Terminal
from utils.tracking.tracker import LocalSink, Tracker
from utils.training.trainer import Trainer


def make_trainer(
    folder,
    *overrides,
    experiment="digits_dct_ladder",
    optimizer=None,
    device="cpu",
    dtype=torch.float32,
    processes=Processes(),  # noqa: B008
):
    """A trainer over 40 small images whose checkpoints go to `folder`."""
    base = ["dataset.data_module.batch_size=8", "train.max_epochs=3", "train.grad_skip_thr=0"]
    settings = compose(experiment, *shrunk(experiment), *base, *overrides)
    torch.manual_seed(settings.train.seed)
    model = build.build_model(settings).to(device, dtype)
    generator = torch.Generator().manual_seed(0)
    dataset = settings.dataset
    shape, top = (56, dataset.channels, dataset.image_size, dataset.image_size), dataset.levels - 1
    images = torch.randint(0, top + 1, shape, generator=generator).to(device, torch.uint8)
    model.fit_context(images[:40], top)
    batches = TrainBatches(
        images[:40],
        top,
        settings.dataset.data_module.batch_size,
        settings.train.seed,
        rank=processes.rank,
        world=processes.world,
        micro_batches=settings.train.acc_grad,
    )

    def write(name, state):
        torch.save(state, folder / f"{name}.pth")

    return Trainer(
        model,
        build.build_objective(settings),
        batches,
        EvaluationBatches(images[40:], top, 8),
        *(
            (optimizer(model.parameters()), None)
            if optimizer
            else build.build_optimizer(settings, model)
        ),
        settings.train,
        saver=Saver(write),
        draw_figures=lambda model, epoch, step: None,
        tracker=Tracker(folder, [LocalSink(folder / "metrics.jsonl")]),
        terminal=Terminal(shown=False),
        signals=Signals(60),
    )


def rows(folder) -> list[dict]:
    """The metrics, without what a clock decides."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMED} for line in lines]


def weights(trainer) -> list[torch.Tensor]:
    """All parameters and buffers."""
    return list(trainer.model.state_dict().values())
