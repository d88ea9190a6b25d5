"""Several processes: what goes wrong in one ends all, soon, with one word about it."""

import signal

import pytest
import torch

from tests.commands import QUIET, SMALL, call, environment, forks, only_run
from utils.processes.peers import INTERRUPTED_MESSAGE

RUN = ["experiment=digits_dct_ladder", *SMALL, *QUIET, "task.estimators=[]"]


def run(folder, world, fault, *more, **case):
    """(statuses, seconds from the first end to the last, all that was printed to each stream)."""
    places = {"folder": str(folder), "output": str(folder), "environment": environment(folder)}
    batch = f"dataset.data_module.batch_size={33 * world}"
    arguments = [*RUN, "train.checkpoint_every=1 step", batch, *more]
    statuses, seconds = forks().run(arguments=arguments, world=world, fault=fault, **places, **case)
    texts = [
        "".join((folder / f"{name}{rank}.txt").read_text() for rank in range(world))
        for name in ("output", "errors")
    ]
    return statuses, seconds, *texts


def slow(*case):
    """A case that the quick suite leaves out."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("world", "rank", "fault", "told"),
    [
        (3, 1, ["kill", 0.01], "Error in process 1: it was killed, or its machine is gone"),
        slow(2, 1, ["fail"], "LookupError: a bug"),
        slow(2, 0, ["fail"], "LookupError: a bug"),
        (2, 1, ["spoil"], "Error in process 1: Training stopped at step 4: the loss is nan, first"),
        slow(2, 1, ["drift"], "step 5: the processes have different weights, first encoder.stem"),
        slow(2, 1, ["run_out_of_memory"], "Error in process 1: CUDA out of memory. Tried to"),
        slow(2, 0, ["fill_disk"], "checkpoint last.pth could not be written ([Errno 27] File too"),
    ],
)
def test_what_goes_wrong_in_one_process_ends_all(tmp_path, world, rank, fault, told):
    statuses, seconds, _, errors = run(tmp_path, world, [rank, 4, *fault])
    assert 0 not in statuses and errors.count(told) == 1, (statuses, errors)
    assert errors.count("Error in process") <= 1 and seconds < 30
    if fault != ["fail"]:
        assert "Traceback" not in errors and errors.count("\n") == 1, errors
    saved = torch.load(only_run(tmp_path) / "checkpoints" / "last.pth", weights_only=True)
    assert 1 <= saved["progress"]["step"] <= 5
    assert all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.slow
def test_a_loss_past_the_wrapper_is_found_at_the_next_checkpoint(tmp_path):
    """As in the published code, whose processes train a model each."""
    statuses, _, _, errors = run(tmp_path, 2, [None, 4, "go_past"])
    assert statuses == [1, 1] and "the processes have different weights, first" in errors


@pytest.mark.slow
def test_the_main_process_killed_ends_all(tmp_path):
    statuses, seconds, _, errors = run(tmp_path, 3, [0, 4, "kill", 0.01])
    assert statuses[0] == -9 and 0 not in statuses and seconds < 30
    assert errors.count("\n") <= 1, errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_process_asked_to_stop_asks_all(tmp_path, number):
    statuses, seconds, _, errors = run(tmp_path, 2, [1, 4, "ask", number])
    assert set(statuses) == {75 if number == signal.SIGTERM else 130} and seconds < 30
    assert errors.count("Interrupted: the same command goes on") == 1 and errors.count("\n") == 1
    saved = torch.load(only_run(tmp_path) / "checkpoints" / "last.pth", weights_only=True)
    assert saved["progress"]["step"] == 4
    batch = "dataset.data_module.batch_size=66"
    assert "continuing at epoch 1, step 5" in call(tmp_path, *RUN, batch).stdout


@pytest.mark.parametrize("rank", [slow(1), slow(0)])
def test_one_process_asked_to_stop_in_validation_has_the_run_saved(tmp_path, rank):
    more = ["dataset.data_module.test_batch_size=5", "train.checkpoint_every=60"]
    fault = [rank, 4, "ask_in_validation", signal.SIGTERM]
    statuses, seconds, output, errors = run(tmp_path, 2, fault, *more)
    assert statuses == [75, 75] and seconds < 30 and "epoch    1" not in output
    assert errors == f"{INTERRUPTED_MESSAGE}\n"
    saved = torch.load(only_run(tmp_path) / "checkpoints" / "last.pth", weights_only=True)
    assert saved["progress"]["step"] == 1300 // 66 and saved["progress"]["epoch"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["train.optimizer.lr=-1", "train.ddp=false"])
def test_a_mistake_is_told_once(tmp_path, wrong):
    statuses, _, output, errors = run(tmp_path, 2, None, wrong)
    assert statuses == [1, 1] and output == "" and not (tmp_path / "runs").exists()
    assert errors.startswith(f"Error: {wrong}") and errors.count("\n") == 1


@pytest.mark.slow
def test_batch_norms_stay_the_same_on_all(tmp_path):
    """Each process has statistics of its own images, in skipped steps too."""
    more = ["model.batch_norm=true", "train.max_epochs=1", "train.grad_skip_thr=1"]
    assert run(tmp_path, 2, None, *more)[0] == [0, 0]


@pytest.mark.slow
def test_steps_that_are_not_finite_on_one_process_are_skipped_on_all(tmp_path):
    more = ["train.on_nonfinite=skip", "train.max_skipped_steps=3"]
    statuses, _, _, errors = run(tmp_path, 2, [1, 4, "spoil"], *more)
    assert statuses == [1, 1] and errors.count("\n") == 1
    assert "step 6: 3 steps in a row were skipped" in errors
