"""Five optimiser steps in float64 with every remedy: in one process, or as one of several.

python tests/processes/arms.py FILE PASSES: into how many passes a batch is split.
"""

import sys
import tempfile
from pathlib import Path

import torch

from datasets.loaders import Batch
from tests.training.trainers import make_trainer
from utils.processes import launch

STEPS = 5
LATER = 4  # where β is neither 0 nor 1 in the arms that raise it
CONTEXT = ("none", "aggregate", "balanced", "committed")  # remedies under a context, too
REMEDIES = (
    *("none", "free_bits", "warmup", "cyclical", "balanced"),
    *("residual", "committed", "skip", "aggregate"),
)
ARMS = {
    **{remedy: ("digits_ladder", remedy) for remedy in REMEDIES},
    **{f"context + {remedy}": ("digits_dct_ladder", remedy) for remedy in CONTEXT},
}


def steps(arm: str, passes: int, processes: launch.Processes) -> dict[str, torch.Tensor]:
    """What an arm's model and objective hold after five steps, from epoch LATER on."""
    experiment, remedy = ARMS[arm]
    overrides = ["dataset.data_module.batch_size=12", f"train.acc_grad={passes}"]
    overrides += [f"remedy={remedy}", "train.max_epochs=40", "model.num_ch=8"]
    trainer = make_trainer(
        Path(tempfile.gettempdir()),
        *overrides,
        experiment=experiment,
        dtype=torch.float64,
        processes=processes,
    )
    beta = trainer.step.local_module.objective.beta
    for epoch in range(LATER, LATER + STEPS):
        for micro_batches in trainer.batches.epoch(epoch):
            if trainer.progress.step < STEPS:
                batches = [Batch(b.x.double(), b.ids) for b in micro_batches]
                trainer.train_step(batches, beta(epoch))
    assert trainer.progress.step == STEPS and not trainer.progress.skipped
    found = dict(trainer.model.state_dict())
    if trainer.state.objective is not None:
        found |= {f"objective.{k}": v for k, v in trainer.state.objective.state_dict().items()}
    return {name: value.clone() for name, value in found.items()}


def main(file: str, passes: str) -> None:
    """Train every arm."""
    processes = launch.start("auto")
    launch.join(processes, torch.device("cpu"))
    found = {arm: steps(arm, int(passes), processes) for arm in ARMS}
    if processes.is_main:
        torch.save(found, file)
    launch.stop()
    raise SystemExit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
