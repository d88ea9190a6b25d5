"""Who launched us, and what one process does without the others."""

import pytest
import torch

from utils.processes import collectives, devices, launch, ranks, rendezvous

LAUNCHERS = ("OMPI_", "PMI_", "PMIX_", "MV2_", "SLURM_", "TORCHELASTIC_", "LOCAL_WORLD", "RANK")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Whatever launched the tests is not to be seen."""
    import os

    for name in os.environ:
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "none"),
        ({"SLURM_JOB_ID": "7"}, "none"),
        ({"SLURM_STEP_NUM_TASKS": "1"}, "none"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpi"),
        ({"PMI_SIZE": "2", "SLURM_STEP_NUM_TASKS": "2"}, "mpi"),
        ({"LOCAL_WORLD_SIZE": "2", "RANK": "0"}, "torchrun"),
    ],
)
def test_launchers(monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.launcher() == expected


FIRST_NODES = {
    "a1,a2": "a1",
    "gpu[03-05,8]": "gpu03",
    "solo": "solo",
    "a[1-2],b[3-4]": "a1",
    "rack[1-2]node[03-05]": "rack1node03",
}


def test_slurm_ranks_and_first_node(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "z[1-9]")  # the step may have fewer nodes
    for nodes, first in FIRST_NODES.items():
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        settings = {"NODELIST": nodes, "NUM_TASKS": "8"}
        for name, value in settings.items():
            monkeypatch.setenv(f"SLURM_STEP_{name}", value)
        for name, value in {"PROCID": "5", "LOCALID": "1", "JOB_ID": "123456"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        found = ranks.from_srun()
        assert (found.rank, found.world, found.local_rank) == (5, 8, 1)
        import os

        assert os.environ["MASTER_ADDR"] == first


def test_the_interface_towards_a_host():
    assert rendezvous.interface("127.0.0.1", 9) in ("lo", "lo0")
    assert rendezvous.interface("::1", 9) is None


def test_one_process_is_the_identity():
    processes = launch.start("auto")
    assert processes == launch.Processes() and processes.is_main
    values, module = torch.ones(2), torch.nn.Linear(1, 1)
    assert collectives.total(values) is values
    assert collectives.wrap(module, torch.device("cpu")) is module
    assert collectives.agree(True, False) == [True, False]
    assert collectives.main_first(processes, lambda: 3) == 3
    launch.stop()


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"train.ddp=true needs several processes"):
        launch.start(True)
    count = torch.cuda.device_count()
    told = f"asks for GPU {count}" if count else "there is no GPU here: use train.device=cpu"
    with pytest.raises(ValueError, match=told):
        devices.pick_device(f"cuda:{count}", launch.Processes())
    assert devices.pick_device("cpu", launch.Processes()) == torch.device("cpu")
