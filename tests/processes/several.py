"""One process of several: five steps in float64, then an evaluation; the main one writes both down.

python tests/processes/several.py FILE PASSES PAST: into how many passes a batch is split, and
whether the loss is computed past what averages gradients.
"""

import sys
import tempfile
from pathlib import Path

import torch

from datasets.loaders import Batch, EvaluationBatches
from tests.training.trainers import make_trainer
from utils.evaluation.bound import estimate_nll, posterior_collapse
from utils.evaluation.information import interventions
from utils.processes import launch

STEPS, IMAGES = 5, 101
COUNTS = (IMAGES, 2, 1)  # evaluated; the fewest leave a process without any


def main(file: str, passes: str, past: str) -> None:
    """Train and evaluate."""
    processes = launch.start("auto")
    launch.join(processes, torch.device("cpu"))
    batch = ["dataset.data_module.batch_size=12", f"train.acc_grad={passes}", "train.ema_rate=0.9"]
    batch += ["model.decoder.z_L_prior.t_sample=loss_aware"]
    trainer = make_trainer(
        Path(tempfile.gettempdir()), *batch, dtype=torch.float64, processes=processes
    )
    if past == "True":
        trainer.step.loss_module = trainer.step.local_module
    for epoch in range(STEPS):
        for micro_batches in trainer.batches.epoch(epoch):
            if trainer.progress.step < STEPS:
                trainer.train_step([Batch(b.x.double(), b.ids) for b in micro_batches], 1.0)
    weights = {
        name: value.clone() for name, value in trainer.state.evaluation_model.state_dict().items()
    }
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 17, (IMAGES, 1, 8, 8), generator=generator).byte()
    model = trainer.model.float()
    found = {"weights": weights}
    for count in COUNTS:
        shard = EvaluationBatches(images[:count], 16, 7, processes.rank, processes.world)
        report = posterior_collapse(model, shard, 0, 2, lambda count: None).report()
        score, nll = estimate_nll(model, shard, "iwae", 3, 2, 0, lambda count: None)
        scores = [score.nll, score.nll_se, score.ess]
        bounds = [i.nelbo for i in interventions(model, shard, 0, lambda count: None).values()]
        found[f"figures of {count}"] = [report.nelbo, *report.kl, report.active_units, *scores]
        found[f"per image of {count}"] = torch.stack([nll, *bounds])
    if processes.is_main:
        torch.save(found, file)
    launch.stop()
    raise SystemExit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
