"""Steps on tensors that stay where they are, which a GPU repeats as one captured graph.

A captured graph launches the same kernels on the same addresses each time, so whatever changes from
step to step lies in a buffer on the device: the epoch's order, where in it the step is, its number,
β, the learning rate, and the losses that nobody has read yet. Without a GPU, or where capturing
fails, the same step runs from Python, with the same results.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch

from datasets.io.on_disk import ImagesOnDisk
from datasets.loaders import TrainBatches
from utils.processes import collectives, graphs
from utils.terminal import one_line
from utils.training.checkpointer import Checkpointer
from utils.training.deferred import DeferredSteps, obstacle
from utils.training.step import TrainingStep

OUR_OWN = ("model", "torch")  # packages whose parts are known to keep no state in Python


def why_not(step: TrainingStep, batches: TrainBatches) -> str | None:
    """Why steps can't be static, if they can't; with train.capture=auto also why it isn't tried."""
    if isinstance(batches.images, ImagesOnDisk):
        return "the images are read from the disk"
    if reason := obstacle(step.state):
        return reason
    if not all("capturable" in group for group in step.state.optimizer.param_groups):
        return f"{type(step.state.optimizer).__name__} reads its learning rate from Python"
    if any(parameter._backward_hooks for parameter in step.model.parameters()):
        return "gradients are looked at in Python, as by wandb.watch=true"
    if step.settings.capture is True:
        return None
    if collectives.several():
        return "there are several processes (train.capture=true tries)"
    parts = {type(part) for part in (*step.local_module.modules(), step.local_module.objective)}
    foreign = [p.__name__ for p in parts if p.__module__.partition(".")[0] not in OUR_OWN]
    if foreign:
        return f"{min(foreign)} is a class of your own (train.capture=true tries)"
    return None


class StaticSteps(DeferredSteps):
    """As `DeferredSteps`, called with the number of a step in its epoch.

    line(text): tells why steps are not captured where a GPU could.
    """

    def __init__(
        self,
        step: TrainingStep,
        checkpointer: Checkpointer,
        batches: TrainBatches,
        line: Callable[[str], None],
    ):
        super().__init__(step, checkpointer, batches)
        self.line, self.device = line, step.model.device
        number = partial(torch.zeros, (), dtype=torch.int64, device=self.device)
        self.batch, self.number, self.row = number(), number(), number()
        on_device = partial(torch.zeros, device=self.device)
        self.order = on_device(len(batches), batches.batch_size // batches.world, dtype=torch.int64)
        self.flipped = on_device(len(batches.images), dtype=torch.bool)
        self.beta = on_device((), dtype=torch.float64)
        # The fused kernels read a rate from the device in float32, and on a CPU as it is.
        rate = torch.float64 if self.device.type == "cpu" else torch.float32
        self.rates = [on_device((), dtype=rate) for _ in self.state.optimizer.param_groups]
        unread = min(step.settings.log_every, len(batches))
        self.rows = on_device(unread, 4 + step.model.num_latents, dtype=torch.float64)
        self.pending: list[int] = []  # their numbers in the epoch
        self.run: Callable[[], None] | None = None  # the step, or its graph

    def epoch(self, epoch: int, start: int = 0) -> Iterator[int]:
        """Fill in what the steps of an epoch read; yields their numbers, from `start` on."""
        order, flipped = self.batches.order(epoch)
        self.order.copy_(order)
        self.flipped.copy_(flipped)
        self.beta.fill_(self.step.local_module.objective.beta(epoch))
        for rate, group in zip(self.rates, self.state.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        if self.run is None:
            self.run = self.captured() if self.device.type == "cuda" else self.static_step
        self.batch.fill_(start)
        self.number.fill_(self.state.progress.step)
        yield from range(start, len(self.batches))

    def static_step(self) -> None:
        """The step that the buffers describe; afterwards they describe the next."""
        ids = self.order.index_select(0, self.batch[None])[0]
        micro_batches = self.batches.divided(self.batches.images[ids], ids, self.flipped)
        with self._rates_on_device():
            row = self._unread(micro_batches, self.beta, self.number)
        self.rows.index_copy_(0, self.row[None], row[None])
        for counter in (self.batch, self.number, self.row):
            counter.add_(1)

    def _enqueue(self, batch: int, beta: float) -> None:
        self.run()
        self.pending.append(batch)

    def _read(self) -> list[list[float]]:
        self.row.zero_()
        return self.rows[: len(self.pending)].tolist()

    def _repeat(self, batch: int, beta: float) -> None:
        ids = self.order[batch]
        self.step(self.batches.divided(self.batches.images[ids], ids, self.flipped), self.beta)

    def release(self) -> None:
        """Let the graph go, with the memory that only it can use."""
        self.run = None

    def captured(self) -> Callable[[], None]:
        """A replay of the static step's graph; the step itself where capturing it fails.

        Steps that are not accepted warm up: they leave everything but the counters as it was.
        """
        self.all_accepted.fill_(False)
        replay, error, warm = self.static_step, None, []

        def warm_up() -> None:
            self._warm_up()
            warm.append(True)

        try:
            replay = graphs.capture(self.static_step, warm_up, self.device)
        except RuntimeError as failure:
            if collectives.several() and not warm:  # the others wait in its sums
                raise
            error = one_line(failure)
        self.row.zero_()
        self.all_accepted.fill_(True)
        [failed] = collectives.agree(error is not None)
        if failed:
            self._forget()
            why = error or "another process could not"
            self.line(f"Note: training steps are not captured as a CUDA graph: {why}.")
        return self.static_step if failed else replay

    def _forget(self) -> None:
        """Undo what a step that broke off has begun."""
        if self.state.scaler.is_enabled():  # else it takes the next gradients as unscaled
            self.state.scaler._per_optimizer_states.clear()
        self.state.model.after_optimizer_step(torch.zeros_like)

    def _warm_up(self) -> None:
        for _ in range(graphs.warm_ups()):
            self.batch.zero_()
            self.row.zero_()
            self.static_step()

    @contextlib.contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """The optimiser's rates in buffers; its schedule and checkpoints go on with numbers."""
        groups = self.state.optimizer.param_groups
        before = [(group["lr"], group["capturable"]) for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group |= {"lr": rate, "capturable": self.device.type == "cuda"}
        try:
            yield
        finally:
            for group, (rate, capturable) in zip(groups, before, strict=True):
                group |= {"lr": rate, "capturable": capturable}
