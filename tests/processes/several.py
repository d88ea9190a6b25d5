"""One process of several: steps in float64, deferred ones too, and an evaluation, written down.

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
from utils.processes import collectives, launch
from utils.training.trainer import Trainer

STEPS, IMAGES = 5, 101
COUNTS = (IMAGES, 2, 1)  # evaluated; the fewest leave a process without any


def train(processes: launch.Processes, passes: str, past: bool, *overrides: str) -> Trainer:
    """A trainer after STEPS steps, of which the second is skipped for its gradient's norm."""
    batch = ["dataset.data_module.batch_size=12", f"train.acc_grad={passes}"]
    batch += ["model.decoder.z_L_prior.t_sample=loss_aware", "train.grad_skip_thr=1e4"]
    folder = Path(tempfile.gettempdir())
    trainer = make_trainer(folder, *batch, *overrides, dtype=torch.float64, processes=processes)
    if past:
        trainer.step.loss_module = trainer.step.local_module
    if not trainer.state.ema:
        trainer.deferred = trainer.defer_steps()
    trainer.model.encoder.stem.bias.register_hook(
        lambda g: g * (1e9 if trainer.progress.step == 1 else 1.0)
    )
    for epoch in range(STEPS):
        for micro_batches in trainer.batches.epoch(epoch):
            if trainer.progress.step < STEPS:
                trainer.train_step([Batch(b.x.double(), b.ids) for b in micro_batches], 1.0)
    return trainer


class Sums(torch.nn.Module):
    """What trainers have of their epoch: the numbers of skipped steps, and the sums."""

    def __init__(self, *trainers: Trainer):
        super().__init__()
        figures = [[trainer.progress.skipped, *trainer.progress.sums] for trainer in trainers]
        self.register_buffer("figures", torch.tensor(figures, dtype=torch.float64))


def main(file: str, passes: str, past: str) -> None:
    """Train and evaluate."""
    processes = launch.start("auto")
    launch.join(processes, torch.device("cpu"))
    deferred = train(processes, passes, past == "True", f"train.log_every={STEPS}")
    trainer = train(processes, passes, past == "True", "train.ema_rate=0.9")
    weights = {
        name: value.clone() for name, value in trainer.state.evaluation_model.state_dict().items()
    }
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 17, (IMAGES, 1, 8, 8), generator=generator).byte()
    model = trainer.model.float()
    sums = Sums(trainer, deferred)
    found = {"weights": weights, "sums": sums.figures, "differing": collectives.differing(sums)}
    for count in COUNTS:
        shard = EvaluationBatches(images[:count], 16, 7, processes.rank, processes.world)
        report = posterior_collapse(model, shard, 0, 2, lambda count: None).report()
        score, nll = estimate_nll(model, shard, "iwae", 3, 2, 2, 0, lambda count: None)
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
