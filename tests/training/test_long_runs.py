"""A run takes no more memory and no more files the longer it goes on."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import COMMAND, SMALL, environment
from tests.conftest import ROOT

EPOCHS = ["train.max_epochs=21", "dataset.data_module.batch_size=13"]  # of 100 steps
OFTEN = ["train.checkpoint_every=20 steps", "train.keep_every=10", "train.eval_freq=21"]


def taken(process_id: int) -> tuple[int, int]:
    """(resident kB, open files) of a process."""
    status = Path(f"/proc/{process_id}/status").read_text().splitlines()
    (resident,) = (line.split()[1] for line in status if line.startswith("VmRSS"))
    return int(resident), len(os.listdir(f"/proc/{process_id}/fd"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_steps_take_what_two_hundred_do(tmp_path):
    """With W&B and a checkpoint every 20 steps; pictures would come and go between the samples."""
    rest = ["task.report=false", "task.estimators=[]"]
    process = subprocess.Popen(
        [*COMMAND, "experiment=digits_dct_ladder", *SMALL, *EPOCHS, *OFTEN, *rest],
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    seen = {}  # the least while so many epochs are done
    while process.poll() is None:
        for path in tmp_path.glob("runs/*/metrics.jsonl"):
            epochs = path.read_text().count("\n")
            if epochs in (2, 20):
                seen[epochs] = min(taken(process.pid), seen.get(epochs, (10**9, 0)))
        time.sleep(0.05)
    assert process.returncode == 0 and set(seen) == {2, 20}
    assert seen[20][0] == pytest.approx(seen[2][0], rel=0.01)
    assert abs(seen[20][1] - seen[2][1]) <= 1  # a checkpoint may just be open
    (run,) = tmp_path.glob("runs/digits*")
    kept = {path.name for path in (run / "checkpoints").glob("epoch_*")}
    assert kept == {"epoch_00010.pth", "epoch_00020.pth"}
    assert (run / "metrics.jsonl").stat().st_size < 21 * 2000  # 8,000 epochs: under 16 MB
    assert (run / "run.log").stat().st_size < 20_000
