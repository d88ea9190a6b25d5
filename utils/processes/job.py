"""What a task runs in: the processes that share it, this one's device, and the terminal."""

from dataclasses import dataclass

import torch

from utils.processes.devices import pick_device
from utils.processes.launch import Processes
from utils.terminal import Terminal


@dataclass(frozen=True)
class Job:
    """One argument for what nearly every function of a task needs."""

    processes: Processes
    device: torch.device
    terminal: Terminal

    @classmethod
    def on(cls, device: str, processes: Processes) -> "Job":
        """On train.device; only the main process has a terminal.

        Raises:
            ValueError: if there is no such device.
        """
        return cls(processes, pick_device(device, processes), Terminal(processes.is_main))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the terminal."""
        return self.processes.is_main
