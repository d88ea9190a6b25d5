"""The cells of the matrix made: each by a command of its own, some at a time."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.runs.signals import Interrupted, Signals
from utils.tasks.cells import Cell
from utils.terminal import Terminal
from utils.version import ROOT

POLL = 0.2  # seconds between looks at the processes


@dataclass(frozen=True)
class Started:
    """A command that runs: of which cells, since when, and where its output is."""

    process: subprocess.Popen
    cells: list[Cell]
    began: float  # time.monotonic()
    log: Path
    offset: int  # of what earlier commands wrote to the log


class CellRunner:
    """Trains the cells that are not there, or evaluates those that lack only that.

    logs: a folder for what the commands print. launcher: Hydra's overrides; with them the cells of
    an arm are the jobs of one command.
    """

    def __init__(self, logs: Path, jobs: int, launcher: Sequence[str], terminal: Terminal):
        self.logs, self.jobs, self.launcher, self.terminal = logs, jobs, launcher, terminal
        self.running: list[Started] = []
        self.waiting: list[list[Cell]] = []
        self.failed: dict[str, str] = {}
        self.blocked = False  # whether all that wait are trained by other processes

    def run(self, cells: Sequence[Cell], grace: float) -> dict[str, str]:
        """Make them; returns why, by the names of those that failed.

        A signal is passed on to the commands, which save their state.

        Raises:
            Interrupted: when asked to stop, once the commands have ended.
        """
        self.waiting = self._commands([cell for cell in cells if cell.result() is None])
        with Signals(grace) as signals, signals.between_steps():
            while self.waiting or self.running:
                if signals.stop_requested:
                    self._stop(signals.number)
                    raise Interrupted(signals.status)
                while len(self.running) < self.jobs and self._start_next():
                    pass
                time.sleep(POLL)
                self._collect()
        return self.failed

    def _commands(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """The cells of each command: one or, through a launcher, those of an arm."""
        if not self.launcher:
            return [[cell] for cell in cells]
        groups: dict[tuple[str, bool], list[Cell]] = {}
        for cell in cells:
            groups.setdefault((cell.arm.label, cell.trained), []).append(cell)
        return list(groups.values())

    def _start_next(self) -> bool:
        """Start the first command whose cells no other process trains; whether there was one."""
        for cells in self.waiting:
            if not any(cell.locked for cell in cells):
                self.waiting.remove(cells)
                cells = [cell for cell in cells if cell.result() is None]  # others may have made it
                if cells:
                    self._start(cells)
                return True
        if self.waiting and not self.running and not self.blocked:
            names = "; ".join(cell.name for cells in self.waiting for cell in cells)
            self.terminal.line(f"Waiting for other processes that train these: {names}")
        self.blocked = bool(self.waiting) and not self.running
        return False

    def _start(self, cells: list[Cell]) -> None:
        """Start the command of these cells in a group of its own: signals come through us."""
        seeds = "-".join(str(cell.seed) for cell in cells)
        log = self.logs / f"{cells[0].arm.label.replace(' + ', '-')}-seed{seeds}.log"
        self.logs.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            offset = file.tell()
            process = subprocess.Popen(
                [sys.executable, "-u", str(ROOT / "run_experiment.py"), *self._arguments(cells)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                process_group=0,
                env={k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"},  # our own's
            )
        self.running.append(Started(process, cells, time.monotonic(), log, offset))
        doing = "evaluating" if cells[0].trained else "training"
        for cell in cells:
            self.terminal.line(f"{cell.name}: {doing}, {log}")

    def _arguments(self, cells: list[Cell]) -> list[str]:
        """Of one command: cells that are trained already lack no more than their report."""
        arguments = list(cells[0].arm.overrides)
        if cells[0].trained:
            folders = ",".join(f"'{cell.folder}'" for cell in cells)
            arguments += ["task=report", f"checkpoint={folders}"]
        else:
            arguments.append(f"train.seed={','.join(str(cell.seed) for cell in cells)}")
        return [*(["-m", *self.launcher] if self.launcher else []), *arguments]

    def _collect(self) -> None:
        """Take note of the commands that have ended."""
        for started in [each for each in self.running if each.process.poll() is not None]:
            self.running.remove(started)
            minutes = (time.monotonic() - started.began) / 60.0
            for cell in started.cells:
                if cell.result() is not None:
                    left = sum(map(len, self.waiting)) + sum(len(r.cells) for r in self.running)
                    self.terminal.line(
                        f"{cell.name}: finished after {minutes:.1f} minutes, {left} to go"
                    )
                elif cell.locked:  # another process was first
                    self.waiting.append([cell])
                else:
                    self.failed[cell.name] = _reason(started)
                    self.terminal.line(f"{cell.name}: failed: {self.failed[cell.name]}")

    def _stop(self, number: int) -> None:
        """Pass the signal on, and wait while the commands save their state."""
        for started in self.running:
            started.process.send_signal(number)
        for started in self.running:
            started.process.wait()


def _reason(started: Started) -> str:
    """The last error that a command printed."""
    with open(started.log, "rb") as file:
        file.seek(started.offset)
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return errors[-1] if errors else f"exit status {started.process.returncode}, see {started.log}"
