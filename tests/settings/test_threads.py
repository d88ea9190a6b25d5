"""Threads: as many as the model's size says, at every start; a busy machine is no catastrophe."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch

from tests.commands import COMMAND, PLAIN, QUIET, environment, metrics, only_run
from tests.conftest import compose
from utils.processes.launch import Processes
from utils.settings import threads
from utils.training.pace import SLOW, STEPS, Pace


@pytest.fixture
def cores(monkeypatch):
    """Sets how many processors this process seems to have."""
    before = torch.get_num_threads()

    def pretend(count: int, of: int | None = None) -> None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr("os.cpu_count", lambda: of or count)
        monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(count)))

    yield pretend
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("experiment", "on_two", "on_64"),
    [("digits_dct_ladder", 1, 1), ("mnist_dct_ladder", 2, 4), ("cifar_dct_ladder", 2, 64)],
)
def test_threads_follow_from_the_models_size(cores, experiment, on_two, on_64):
    settings = compose(experiment)
    cores(2)
    assert threads.number_of_threads(settings, Processes()) == on_two
    cores(64)
    assert threads.number_of_threads(settings, Processes()) == on_64
    assert threads.number_of_threads(compose(experiment, "train.threads=3"), Processes()) == 3


def test_processes_of_a_machine_share_its_processors(cores, monkeypatch):
    cores(8)
    eight = Processes(world=4, local_world=4)
    assert threads.available(Processes()) == 8 and threads.available(eight) == 2
    cores(2, of=8)  # the launcher has given each process its own
    assert threads.available(eight) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.available(eight) == 3


def test_a_run_keeps_the_number_that_it_began_with(cores):
    cores(2)
    settings = compose("mnist_dct_ladder")
    assert threads.use_threads(settings, Processes(), recorded=1) == torch.get_num_threads() == 1
    asked = compose("mnist_dct_ladder", "train.threads=2")
    assert threads.use_threads(asked, Processes(), recorded=1) == torch.get_num_threads() == 2


def test_slow_steps_are_told_once():
    pace, told = Pace(), []
    for seconds in [9.0] + [0.1] * (2 * STEPS) + [0.12] * STEPS + [0.5] * (3 * STEPS):
        told.append(pace.add(seconds))
    (sentence,) = [text for text in told if text]
    assert told.index(sentence) == 4 * STEPS  # at the end of the first slow window
    assert sentence.startswith("Note: a step takes 0.5 s, 5.0 times as long as before")
    gradual = Pace()
    assert not any(gradual.add(0.1 * min(SLOW - 0.1, 1 + k / 100)) for k in range(300))


@pytest.mark.slow
def test_a_busy_process_of_another_session_leaves_a_small_run_its_share(tmp_path):
    """One for each processor: half of one is what is left. Two threads would get a hundredth."""
    arguments = [*PLAIN, *QUIET, "train.max_epochs=30", "model.num_ch=32"]
    variables = {k: v for k, v in environment(tmp_path).items() if k != "OMP_NUM_THREADS"}

    def rate(folder) -> float:
        folder.mkdir()
        subprocess.run(
            [*COMMAND, *arguments], cwd=folder, env=variables, check=True, capture_output=True
        )
        lines = (only_run(folder) / "metrics.jsonl").read_text().splitlines()
        rates = sorted(json.loads(line)["train/images_per_second"] for line in lines)
        assert len(metrics(only_run(folder))) == 30
        return rates[len(rates) // 2]

    alone = rate(tmp_path / "alone")
    loop = ["sh", "-c", "while :; do :; done"]
    busy = [subprocess.Popen(loop, start_new_session=True) for _ in range(os.cpu_count())]
    try:
        time.sleep(0.5)
        beside = rate(tmp_path / "beside")
    finally:
        for process in busy:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    assert beside > 0.35 * alone
    content = torch.load(only_run(tmp_path / "beside") / "checkpoints" / "last.pth")
    assert content["threads"] == 1
