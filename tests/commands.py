"""The command as a user types it, in processes of its own."""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import matplotlib

from tests.conftest import ROOT, shrunk
from tests.forks import Forks
from tests.tracking.wandb_server import WandbServer

COMMAND = [sys.executable, "-u", str(ROOT / "run_experiment.py")]
OWN_DATA = "dataset._target_=tests.few_digits.load"  # code that a checkpoint alone may not name
DATA = [OWN_DATA, "dataset.data_module.batch_size=100"]
DATA += ["dataset.data_module.test_batch_size=500", "train.max_epochs=2"]
SMALL = [*shrunk("digits_dct_ladder"), *DATA]
PLAIN = ["experiment=digits_ladder", *shrunk("digits_ladder"), *DATA]
ONLINE = [*PLAIN, "train.max_epochs=1", "train.eval_freq=1", "task.mi_images=3"]
ONLINE += ["task.estimators=[iwae]"]
TIMED = ("train/images_per_second", "train/seconds")  # metrics that a clock decides
QUIET = ["wandb.setup.mode=disabled", "task.estimators=[iwae]", "task.report=false"]


def environment(folder: Path) -> dict:
    """No account, no network, nothing of the person's who runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_"))}
    fonts = matplotlib.get_cachedir()  # else every process looks through the machine's fonts
    return {**kept, "HOME": str(folder), "MPLCONFIGDIR": fonts, "NO_COLOR": "1", "COLUMNS": "200"}


def connected(server: WandbServer, folder: Path) -> dict:
    """The same, with an account at a server of the test's own."""
    variables = {**environment(folder), **server.environment(folder / "own")}
    return {**variables, "PYTHONPATH": str(ROOT)}


@cache
def forks() -> Forks:
    """One for all commands of this process."""
    started = Forks()
    atexit.register(started.close)
    return started


def call(folder: Path, *arguments: str, launcher: tuple = (), status: int = 0, timeout=240):
    """Run the command in `folder` and return what it printed.

    launcher: what starts it; else it is a fork of a process that has imported what it imports.
    """
    command, variables = [*launcher, *COMMAND, *arguments], environment(folder)
    if launcher:
        settings = {"cwd": folder, "env": variables, "capture_output": True, "text": True}
        found = subprocess.run(command, timeout=timeout, **settings)
    else:
        with tempfile.TemporaryDirectory() as output:
            case = {"folder": str(folder), "environment": variables, "output": output}
            (ended,), _ = forks().run(arguments=arguments, **case)
            texts = (Path(output, f"{name}0.txt").read_text() for name in ("output", "errors"))
            found = subprocess.CompletedProcess(command, ended, *texts)
    assert found.returncode == status, found.stdout + found.stderr
    return found


EACH = """
import contextlib, io, json, os, runpy, sys
_, script, cases = sys.argv
for arguments in json.loads(cases):
    os.environ.pop("HYDRA_FULL_ERROR", None)  # set by the one before
    output, errors, sys.argv = io.StringIO(), io.StringIO(), [script, *arguments]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, output.getvalue(), errors.getvalue()]))
"""


def call_each(
    folder: Path, cases: list[list[str]], before: str = "", timeout: int = 240
) -> list[tuple[int, str, str]]:
    """The command with each of these arguments: status, output, errors.

    All in one process, for what does little: most of its time is imports. before: what the process
    runs first.
    """
    found = subprocess.run(
        [sys.executable, "-c", before + EACH, COMMAND[2], json.dumps(cases)],
        cwd=folder,
        env={**environment(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert found.returncode == 0 and found.stderr == "", found.stderr
    return [tuple(json.loads(line)) for line in found.stdout.splitlines()]


def only_run(folder: Path) -> Path:
    """The one run in folder/runs."""
    runs = [path for path in (folder / "runs").glob("[!.]*") if path.is_dir()]
    assert len(runs) == 1
    return runs[0]


def metrics(run: Path) -> list[dict]:
    """The run's metrics, without what a clock decides."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]
