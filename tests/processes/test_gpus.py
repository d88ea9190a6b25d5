"""Several GPUs, as far as it can be tried without one: who gets which, and what connects them.

What asks for a GPU is replaced; NCCL itself is not tried.
"""

import os
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from utils.errors import ConfigError
from utils.processes import collectives, launch, rendezvous, watch
from utils.processes.devices import pick_device
from utils.processes.peers import Termination
from utils.processes.ranks import Processes
from utils.tasks import command

SECOND = Processes(1, 2, 1, 2, "torchrun")


@pytest.fixture
def gpus(monkeypatch):
    """A function that sets how many GPUs this process sees, and the list of those that it chose."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU {device}")
    )
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda *more: torch.device("cuda")
    )

    def see(count):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return chosen

    return see


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
@pytest.mark.parametrize(("count", "local_rank", "index"), [(4, 3, 3), (2, 0, 0), (1, 3, 0)])
def test_each_process_has_the_gpu_of_its_rank_or_the_one_it_sees(
    gpus, wanted, count, local_rank, index
):
    """srun --gpus-per-task=1 shows each process its own alone."""
    chosen = gpus(count)
    processes = Processes(local_rank, 4, local_rank, 4)
    assert pick_device(wanted, processes) == torch.device("cuda", index)
    assert chosen == [index]


def test_one_gpu_for_several_processes_is_refused(gpus):
    gpus(2)
    with pytest.raises(ValueError, match=r"train.device=cuda:1 names one GPU for 2 processes"):
        pick_device("cuda:1", SECOND)
    with pytest.raises(ValueError, match="asks for GPU 2 but this node has 2"):
        pick_device("cuda", Processes(2, 3, 2, 3))
    assert pick_device("cuda:1", Processes()) == torch.device("cuda", 1)


def check(*devices):
    """The comparison, as the last of some processes makes it."""
    store = dist.HashStore()
    for rank, device in enumerate(devices):
        if rank < len(devices) - 1:
            store.set(f"device {rank}", device)
    processes = Processes(len(devices) - 1, len(devices))
    launch._check_devices(store, processes, torch.device(devices[-1]))


def test_processes_with_different_devices_are_refused(gpus, monkeypatch):
    monkeypatch.setattr(launch.socket, "gethostname", lambda: "node1")
    cpu, first = '["cpu", ""]', '["cuda", "node1 GPU cuda:0"]'
    check(cpu, "cpu")
    check(first, "cuda:1")
    with pytest.raises(ConfigError, match="is cuda in process 1 and cpu in process 0"):
        check(cpu, "cuda:0")
    with pytest.raises(ConfigError, match="process 2 and another use the same GPU"):
        check('["cuda", "node2 GPU cuda:0"]', first, "cuda:0")


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:1", "cpu:gloo,cuda:nccl")])
def test_the_group_is_of_the_device_and_connects_at_once(gpus, monkeypatch, device, backend):
    store, started = dist.HashStore(), {}
    first = '["cuda", "GPU 0"]' if device == "cuda:1" else '["cpu", ""]'
    met = rendezvous.Rendezvous(SECOND, store)
    launch._store(met).set("device 0", first)
    monkeypatch.setattr(launch, "meet", lambda kind: met)
    monkeypatch.setattr(
        dist, "init_process_group", lambda *named, **more: started.update(more, backend=named[0])
    )
    launch.join(SECOND, torch.device(device))
    assert started["backend"] == backend and started["timeout"] == timedelta(hours=4)
    assert started["device_id"] == (torch.device(device) if device != "cpu" else None)


def test_the_store_waits_as_long_as_a_collective_operation():
    """NCCL, too, would end with the store's timeout; slow imports have ten minutes to be over."""
    store = rendezvous._host_store(rendezvous.LOOPBACK, 0, Processes(0, 2, 0, 2))
    assert store.timeout == rendezvous.COLLECTIVE_TIMEOUT == timedelta(hours=4)
    assert rendezvous.CONNECT_TIMEOUT == 600


def test_the_device_is_chosen_and_connected_before_anything_is_communicated(gpus, monkeypatch):
    """Else the first barrier would be on GPU 0 for all: of a run to fetch, for instance."""
    gpus(2)
    order, values = [], {"train.device": "cuda", "train.stuck_minutes": 1}
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: order.append(f"GPU {index}"))
    monkeypatch.setattr(launch, "join", lambda processes, device: order.append(f"join {device}"))
    monkeypatch.setattr(command, "check_same", lambda facts: order.append("check"))
    command._connect(SimpleNamespace(value=values.get, shared={}), SECOND)
    assert order == ["GPU 1", "join cuda:1", "check"]


def test_tensors_of_a_gpu_are_communicated_there_and_all_others_on_the_cpu():
    found = {name: collectives._communicated(torch.device(name)) for name in ("cuda:1", "cpu")}
    assert found == {name: torch.device(name) for name in found}
    assert collectives._communicated(torch.device("mps")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("backend", "termination", "ends"),
    [
        ("cpu:gloo,cuda:nccl", Termination(1, 3, "lost"), ["closed", 3]),
        ("gloo", Termination(1, 3, "lost"), ["closed"]),
        ("cpu:gloo,cuda:nccl", None, ["closed", "destroyed"]),
    ],
)
def test_nccl_is_not_taken_down_without_the_others(monkeypatch, backend, termination, ends):
    """Its teardown may wait for them for ever."""
    done = []
    monitor = SimpleNamespace(termination=termination, close=lambda: done.append("closed"))
    watch.begin(monitor)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("destroyed"))
    monkeypatch.setattr(os, "_exit", done.append)
    launch.stop()
    assert done == ends and watch.end() is None


def test_too_little_memory_is_told_in_one_sentence_with_the_remedy():
    """As torch says it, whose message goes on for half a page."""
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB "
        "of which 1.20 GiB is free. Including non-PyTorch memory, this process has 77.9 GiB."
    )
    assert isinstance(error, command.USER_ERRORS)
    told = command._sentence(error)
    assert told.startswith(
        "CUDA out of memory. Tried to allocate 2.00 GiB: to train in less, lower"
    )
    assert "dataset.data_module.test_batch_size" in told and "\n" not in told
