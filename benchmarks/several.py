"""Training by one process and by several: images per second, and what their talk costs.

    python -m benchmarks.several
    mpiexec -n 2 python -m benchmarks.several experiment=mnist_dct_ladder

The batch is the experiment's own, divided over the processes. "without talk" is the same step with
every process keeping its gradients to itself; threads are what OMP_NUM_THREADS says.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from datasets.loaders import EvaluationBatches, TrainBatches
from utils import build, config, distributed
from utils.signals import Signals
from utils.terminal import Terminal
from utils.tracking import LocalSink, Tracker
from utils.trainer import Trainer
from utils.validation import validate

STEPS = 8


def rate(trainer: Trainer, talk: bool) -> float:
    """Images per second over all processes; the first steps warm up."""
    batches = trainer.batches
    with distributed.no_sync(trainer.loss_module, not talk):
        for index, passes in enumerate(batches.epoch(0)):
            if index == STEPS:
                began = time.perf_counter()
            trainer._train_step(passes, 1.0)
    return batches.batch_size * STEPS / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", default=["experiment=mnist_dct_ladder"])
    processes = distributed.start("auto")
    settings = config.resolve(config.compose(parser.parse_args().overrides))
    validate(settings)
    dataset, seed = settings["dataset"], settings["train"]["seed"]
    device = distributed.pick_device("auto", processes)
    torch.manual_seed(seed)
    model = build.build_model(settings).place(device)
    batch = dataset["data_module"]["batch_size"]
    shape = (2 * STEPS * batch, dataset["channels"], *2 * [dataset["image_size"]])
    images = torch.randint(0, dataset["levels"], shape).byte().to(device)
    model.fit_context(images, dataset["levels"] - 1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            build.build_objective(settings),
            TrainBatches(
                images,
                dataset["levels"] - 1,
                batch,
                seed,
                rank=processes.rank,
                world=processes.world,
            ),
            EvaluationBatches(images[:8], dataset["levels"] - 1, 8),
            *build.build_optimizer(settings, model),
            {**settings["train"], "grad_skip_thr": 0},
            None,
            lambda model, epoch, step: None,
            Tracker(Path(folder), [LocalSink(Path(folder) / "metrics.jsonl")]),
            Terminal(shown=False),
            Signals(0),
        )
        talking = rate(trainer, True)
        told = f"{settings['name']}, {processes.describe()}, {torch.get_num_threads()} thread(s) "
        told += f"each, on {device.type}: {talking:,.4g} images/s"
        if processes.world > 1:
            silent = rate(trainer, False)
            sent = sum(p.numel() * p.element_size() for p in model.parameters())
            told += f"; {sent / 1e6:.2f} MB of gradients a step; without talk {silent:,.4g}"
            told += f" images/s, so it is {max(0.0, 1 - talking / silent):.1%} of the step"
    if processes.is_main:
        print(told)
    distributed.stop()


if __name__ == "__main__":
    main()
