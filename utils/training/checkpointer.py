"""When the training state is saved, and what must hold before it is."""

import time

from utils.processes import collectives
from utils.runs.background import SaveFailed, Saver, snapshot
from utils.settings.schema.train import Train
from utils.terminal import Terminal
from utils.training import diagnosis
from utils.training.state import TrainingState
from utils.training.stopping import CannotContinue, TrainingStopped


class Checkpointer:
    """Hands copies of the training state to a thread that writes them while training goes on.

    saver: None on processes that write no checkpoints. train: the settings under train, of which
    checkpoint_every and on_save_error are read.
    """

    def __init__(self, state: TrainingState, saver: Saver | None, train: Train, terminal: Terminal):
        self.state, self.saver, self.terminal = state, saver, terminal
        self.continue_on_error = train.on_save_error == "continue"
        every = train.checkpoint_every
        self.every_steps = int(every.split()[0]) if isinstance(every, str) else None
        self.every_minutes = None if isinstance(every, str) else every
        self.last_save = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether train.checkpoint_every asks for a checkpoint after this many steps, or now."""
        if self.every_steps is not None:
            return self.due_by_count(step)
        return time.monotonic() - self.last_save >= 60.0 * self.every_minutes

    def due_by_count(self, step: int) -> bool:
        """Whether checkpoints go by the number of steps, and one is due after this many."""
        return self.every_steps is not None and step % self.every_steps == 0

    def save(self, *names: str, wait: bool = False) -> None:
        """Save the state under these names; returns once it is copied or, to `wait`, written.

        Collective: call it on every process.

        Raises:
            CannotContinue: where weights are not finite, or differ between processes.
            TrainingStopped: see `check`.
        """
        differing = collectives.differing(self.state.model)
        if differing:
            raise CannotContinue(f"the processes have different weights, first {differing}")
        bad = diagnosis.bad_weights(self.state.model)
        if bad:
            raise CannotContinue(f"the weights are not finite, first {bad}")
        if self.saver:
            self.saver.put(list(names), snapshot(self.state.state_dict()))
        self.last_save = time.monotonic()
        if wait:
            self.check(wait=True)

    def check(self, wait: bool = False) -> None:
        """Report a checkpoint that could not be written since the last call.

        Raises:
            TrainingStopped: for such a one, unless train.on_save_error=continue.
        """
        try:
            if self.saver and wait:
                self.saver.finish()
            elif self.saver:
                self.saver.check()
        except SaveFailed as error:
            if not self.continue_on_error:
                raise TrainingStopped(
                    f"Training stopped at step {self.state.progress.step}: {error}; mend that and "
                    "repeat the command, or let it go on without by train.on_save_error=continue."
                ) from error
            self.terminal.line(f"Note: {error}; training goes on and tries again at the next one.")

    def settle(self) -> None:
        """Wait until everything is written, for what comes next is read from it.

        Raises:
            TrainingStopped: if it cannot be; with train.on_save_error=continue after another try.
        """
        if not (self.saver and self.continue_on_error):
            self.check(wait=True)
            return
        try:
            self.saver.finish()
        except SaveFailed as error:
            self.terminal.line(f"Note: {error}; trying once more.")
        self.saver.retry()
        try:
            self.saver.finish()
        except SaveFailed as error:
            raise TrainingStopped(
                f"Training has come to its end, but {error}, and the scores would be of an older "
                "one; mend that and repeat the command."
            ) from error

    def close(self) -> None:
        """Wait for what is being written when training has ended, by an error too.

        The run's folder is this process's until then. A checkpoint that could not be written is
        reported only, because the error that ended the training matters more.
        """
        try:
            if self.saver:
                self.saver.finish()
        except SaveFailed as error:
            self.terminal.line(f"Note: {error}.")
