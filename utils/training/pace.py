"""Noticing that training has become slow: another program on the same processors, mostly."""

import torch

SLOW = 3.0  # times as long as before
STEPS = 20  # that are averaged: single ones vary


class Pace:
    """Compares the mean of the last steps with the fastest such mean so far; says so once.

    log_every: steps between readings from a GPU, which make one step of so many long.
    """

    def __init__(self, log_every: int = 1):
        self.window = max(STEPS, 2 * log_every)
        self.steps, self.seconds, self.fastest = 0, 0.0, None
        self.warned = False

    def add(self, seconds: float) -> str | None:
        """A step's seconds; a sentence where steps take several times as long as they did.

        The first step does not count: memory is taken and kernels are chosen then.
        """
        self.steps += 1
        if self.steps == 1:
            return None
        self.seconds += seconds
        if (self.steps - 1) % self.window:
            return None
        mean, self.seconds = self.seconds / self.window, 0.0
        self.fastest = min(mean, self.fastest or mean)
        if self.warned or mean < SLOW * self.fastest:
            return None
        self.warned = True
        threads = torch.get_num_threads()
        remedy = "end that, or let this run take its time"
        if threads > 1:
            remedy = (
                f"{threads} threads wait for one another: interrupt the run and repeat the command "
                "with train.threads=1, which loses least (results then differ in rounding)"
            )
        return (
            f"Note: a step takes {mean:.2g} s, {mean / self.fastest:.1f} times as long as before; "
            f"something else seems to use this machine: {remedy}."
        )
