"""Everything that training changes, saved and restored as one."""

import warnings
from dataclasses import asdict

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from model import LadderVAE
from model.objective import Objective, StatefulObjective
from utils.processes import devices
from utils.settings.schema.train import Train
from utils.terminal import one_line
from utils.training.average import AveragedWeights
from utils.training.progress import Progress
from utils.training.restored import check_optimizer, check_scheduler, progress

# How an optimiser computes is this machine's choice, not the checkpoint's.
IMPLEMENTATION_KEYS = ("fused", "foreach")


class TrainingState:
    """Model, averaged weights, optimiser, scheduler, loss scaler and progress of a run.

    train: the settings under train, of which use_amp and ema_rate are read. objective: saved too
    where it learns (`StatefulObjective`). Checkpoints hold what `state_dict` returns, tensors and
    plain containers alone.
    """

    def __init__(
        self,
        model: LadderVAE,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | ReduceLROnPlateau | None,
        train: Train,
        objective: Objective,
    ):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.progress = Progress()
        self.objective = None
        if isinstance(objective, StatefulObjective):
            self.objective = objective.to(model.device)
        self.ema = AveragedWeights(model, train.ema_rate) if train.ema_rate > 0 else None
        self.amp_dtype = devices.amp_dtype(model.device) if train.use_amp else None
        scaling = self.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=scaling)

    @property
    def evaluation_model(self) -> LadderVAE:
        """What validation and testing use: the model with averaged weights where there are any."""
        return self.ema.module if self.ema else self.model

    def state_dict(self) -> dict:
        """Everything that training needs to continue."""
        objective = {"objective": self.objective.state_dict()} if self.objective else {}
        return {
            **objective,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
        }

    def load_state_dict(self, state: dict, new_schedule: bool = False) -> None:
        """Continue from what `state_dict` returned.

        new_schedule: the learning rate is to follow the scheduler that this run was built with, as
        if it had from the start; else the saved one's.

        Raises:
            ValueError: if it is of another model, optimiser or schedule, or none at all.
        """
        try:
            self._load(state, new_schedule)
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"The checkpoint to go on from does not fit the run ({one_line(error)}): get a "
                "good copy, or train under another name=…."
            ) from error

    def _load(self, state: dict, new_schedule: bool) -> None:
        check_optimizer(state["optimizer"], self.optimizer)
        if self.scheduler:
            check_scheduler(state["scheduler"], self.scheduler)
        self.model.load_state_dict(state["model"])
        if self.objective:
            self.objective.load_state_dict(state["objective"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        groups = self.optimizer.param_groups
        for saved, own in zip(state["optimizer"]["param_groups"], groups, strict=True):
            saved |= {key: own[key] for key in IMPLEMENTATION_KEYS if key in own}
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = progress(state["progress"])
        if self.scheduler and new_schedule and not isinstance(self.scheduler, ReduceLROnPlateau):
            self._replay_schedule()
        elif self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        if state["scaler"]:  # empty where the run has needed none, as in bfloat16
            self.scaler.load_state_dict(state["scaler"])

    def _replay_schedule(self) -> None:
        """Bring a new schedule, which has not begun, to the epoch of the run."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        with warnings.catch_warnings():  # the optimiser's steps were another's
            warnings.filterwarnings("ignore", ".*lr_scheduler.step", UserWarning)
            for _ in range(self.progress.epoch):
                self.scheduler.step()
