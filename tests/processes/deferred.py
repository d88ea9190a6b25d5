"""One process of two: an epoch of steps with averaged weights, each waited for; deferred; static.

python tests/processes/deferred.py FILE: where the main one writes the three states. One step's loss
is not finite on the other process alone, and another's gradient is over the threshold.
"""

import math
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from tests.training.trainers import make_trainer
from utils.processes.launch import Processes

OVERRIDES = ["train.ema_rate=0.9", "model.decoder.z_L_prior.t_sample=loss_aware"]
OVERRIDES += ["model.latent_scales=[1,1]"]
OVERRIDES += ["train.log_every=4", "train.on_nonfinite=skip", "train.grad_skip_thr=1e4"]
BAD_LOSS, BAD_GRADIENT = 2, 3  # steps, from 1


def train(processes: Processes, kind: str) -> dict:
    """The state after an epoch of five steps."""
    capture = f"train.capture={str(kind == 'static').lower()}"
    folder = Path(tempfile.gettempdir())
    trainer = make_trainer(folder, *OVERRIDES, capture, processes=processes)
    if kind == "deferred":
        trainer.deferred = trainer.defer_steps()

    def step() -> int:
        return trainer.progress.step + 1

    def spoil(module, inputs, output):
        return output * math.nan if step() == BAD_LOSS and processes.rank == 1 else output

    trainer.model.encoder.stem.register_forward_hook(spoil)
    trainer.model.encoder.stem.bias.register_hook(
        lambda g: g * (1e9 if step() == BAD_GRADIENT else 1.0)
    )
    for micro_batches in (trainer.deferred or trainer.batches).epoch(0):
        trainer.train_step(micro_batches, 1.0)
    return trainer.state.state_dict()


if __name__ == "__main__":
    dist.init_process_group("gloo")
    this = Processes(dist.get_rank(), dist.get_world_size())
    states = [train(this, kind) for kind in ("plain", "deferred", "static")]
    if this.is_main:
        torch.save(states, sys.argv[1])
    dist.destroy_process_group()
    raise SystemExit(0)
