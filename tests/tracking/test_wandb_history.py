"""One history at W&B, without gaps or doubles, however a run was cut into pieces."""

import json
import subprocess
import sys

import pytest

from tests.commands import connected
from tests.tracking.wandb_server import WandbServer

# A run without a model: rows to the folder and W&B, a checkpoint, more for W&B; then perhaps the
# end of all its processes, W&B's too, between a row and its checkpoint.
PIECE = """
import os, signal, sys, time
from pathlib import Path
from utils.settings.composition import compose, composed_settings
from utils.tracking.sinks import LocalSink
from utils.tracking.tracker import Tracker
from utils.tracking.wandb_sink import WandbSink

mode, until, wait = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
folder, checkpoint = Path("run").absolute(), Path("run", "step")
folder.mkdir(exist_ok=True)
settings = composed_settings(compose(["experiment=digits_ladder"]))
mirror = WandbSink(settings.wandb, folder, "run", "cut", settings.plain, None, mode, print)
tracker = Tracker(folder, [LocalSink(folder / "metrics.jsonl"), mirror])
start = int(checkpoint.read_text()) if checkpoint.exists() else 0
tracker.begin(start)
for step in range(start + 1, until + 1):
    tracker.log({"val/nelbo": 1 / step}, step, step)
    if step == until and wait >= 0:
        time.sleep(wait)
        os.killpg(0, signal.SIGKILL)
    checkpoint.write_text(str(step))
    tracker.histograms({"collapse/log_variance_0": [step, 0.5]}, step, step)
tracker.close()
"""
SYNC = """
from pathlib import Path
from utils.settings.composition import compose, composed_settings
from utils.tasks.sync import bring_up_to_date
settings = composed_settings(compose(["experiment=digits_ladder"]))
print(bring_up_to_date(Path("run").absolute(), settings, "cut"))
"""
END, AT_ONCE, LATER = -1, 0, 2.5  # how a piece ends: well, or killed so many seconds after a row


@pytest.fixture(scope="module")
def server():
    """A server for all pieces."""
    with WandbServer() as running:
        yield running


def process(server, folder, code, *arguments):
    """Python in a process group of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=folder,
        env=connected(server, folder),
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "pieces",
    [
        [("online", 2, AT_ONCE), ("online", 4, END)],
        [("online", 2, LATER), ("online", 3, LATER), ("online", 4, END)],
        [("offline", 2, END), ("offline", 4, END)],
        [("offline", 2, LATER), ("offline", 4, END)],
        [("offline", 2, END), ("offline", 3, AT_ONCE), ("offline", 4, LATER)],
        [("online", 2, LATER), ("offline", 4, END)],
        [("online", 2, AT_ONCE), ("offline", 3, LATER), ("offline", 4, END)],
        [("offline", 2, LATER), ("online", 4, END)],
        [("offline", 1, END), ("online", 2, LATER), ("offline", 3, END), ("online", 4, AT_ONCE)],
    ],
    ids=lambda pieces: "-".join(f"{mode}{wait:+g}" for mode, _, wait in pieces),
)
def test_one_history_without_gaps_or_doubles(server, tmp_path, pieces):
    check(server, tmp_path, pieces)


@pytest.mark.slow
def test_killed_pieces_make_one_history(server, tmp_path):
    check(server, tmp_path, [("online", 2, AT_ONCE), ("offline", 4, LATER)], uploads=1)


def check(server, folder, pieces, uploads=2):
    """Play the pieces, then upload: W&B has every row of the folder once, in order."""
    server.runs.pop("cut", None)
    for mode, until, wait in pieces:
        found = process(server, folder, PIECE, mode, until, wait)
        assert found.returncode == (0 if wait == END else -9), found.stderr
    for _ in range(uploads):  # the second has nothing left to do
        found = process(server, folder, SYNC)
        assert found.stdout.splitlines()[-1:] == ["tester/dct_ladder_vae/cut"], found.stderr
        local = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
        history = server.run("cut").history
        epochs = [row for row in history if "val/nelbo" in row]
        assert [{k: row[k] for k in ("epoch", "step", "val/nelbo")} for row in epochs] == [*local]
        assert [row["_step"] for row in epochs] == [10, 20, 30, 40]
        others = [row["_step"] for row in history if "collapse/log_variance_0" in row]
        assert others == sorted(set(others)) and set(others) <= {11, 21, 31, 41}
        if all(wait == END for _, _, wait in pieces):
            assert len(others) == 4
