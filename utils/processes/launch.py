"""One process or many: they find one another, watch one another, and form a process group.

Without a launcher, or with one process, nothing is initialised.
"""

import json
import os
import socket
import sys

import torch
import torch.distributed as dist

from utils.errors import ConfigError
from utils.processes import watch
from utils.processes.connections import Peer, accept_peers, connect, own_place
from utils.processes.peers import PeerMonitor
from utils.processes.ranks import Processes, launcher
from utils.processes.rendezvous import (
    COLLECTIVE_TIMEOUT,
    Rendezvous,
    interface,
    listen,
    meet,
)

ADDRESS = "address of the main process"  # the key in the store
_distributed_jobs = 0  # of this command, so far: each has its own keys in the store


def start(ddp: bool | str) -> Processes:
    """Find the other processes and begin to watch them.

    Raises:
        ValueError: if train.ddp asks for what the launcher did not provide.
    """
    global _distributed_jobs
    kind = launcher()
    rendezvous = meet(kind)
    processes = rendezvous.processes
    _check_requested(ddp, kind, processes)
    if processes.world > 1:
        _distributed_jobs += 1
        watch.begin(PeerMonitor(processes, _connected(rendezvous, _store(rendezvous))))
    return processes


def join(processes: Processes, device: torch.device) -> None:
    """Form the process group of all processes, each with the device that it will use.

    CPU tensors are communicated by gloo, those of a GPU by NCCL. The device is named so that NCCL
    connects now: later, while it waits for a slow main process, its own timeout would be over.

    Raises:
        ConfigError: if the processes would use different kinds of devices, or share a GPU.
    """
    if processes.world == 1:
        return
    rendezvous = meet(processes.launcher)
    store = _store(rendezvous)
    _check_devices(store, processes, device)
    port = int(os.environ.get("MASTER_PORT", "9"))  # of no importance
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := interface(rendezvous.host, port)):
        os.environ["GLOO_SOCKET_IFNAME"] = name
    dist.init_process_group(
        backend(device),
        store=store,
        rank=processes.rank,
        world_size=processes.world,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )


def backend(device: torch.device) -> str:
    """What communicates the tensors of each kind of device."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def stop() -> None:
    """Leave the process group, if there is one."""
    termination = watch.end()
    if not dist.is_initialized():
        return
    if termination is None:  # else the others are gone, and this could wait for them for ever
        dist.destroy_process_group()
    elif dist.get_backend() != "gloo":  # NCCL could wait for them where the interpreter ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(termination.status)


def _check_requested(ddp: bool | str, kind: str, processes: Processes) -> None:
    """Raise ValueError where train.ddp contradicts the number of processes."""
    if ddp is True and processes.world == 1:
        raise ValueError(
            "train.ddp=true needs several processes: start with mpiexec -n 4 (or torchrun, srun), "
            "or use train.ddp=auto."
        )
    if ddp is False and processes.world > 1:
        if not processes.is_main:  # one message is enough
            raise SystemExit(1)
        raise ValueError(
            f"train.ddp=false but {kind} started {processes.world} processes: use train.ddp=auto."
        )


def _store(rendezvous: Rendezvous) -> dist.Store:
    """The part of the store that belongs to this job of the command."""
    return dist.PrefixStore(f"job {_distributed_jobs}", rendezvous.store)


def _connected(rendezvous: Rendezvous, store: dist.Store) -> dict[int, Peer]:
    """The connections between rank 0 and all others, each proved to belong to the run."""
    processes, host, secret = rendezvous.processes, rendezvous.host, rendezvous.secret
    if processes.is_main:
        server = listen(host, 0, processes.one_node)
        bound, port = server.getsockname()[:2]
        address = host if bound in ("::", "0.0.0.0") else bound
        store.set(ADDRESS, json.dumps([address, port, own_place()]))
        return accept_peers(server, secret, processes.world)
    address, port, place = json.loads(store.get(ADDRESS))
    return {0: connect((address, port), place, secret, processes)}


def _check_devices(store: dist.Store, processes: Processes, device: torch.device) -> None:
    """Compare the kinds of all processes' devices, and the GPUs themselves.

    Raises:
        ConfigError: naming two processes whose devices don't fit.
    """
    gpu = ""
    if device.type == "cuda":
        gpu = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"
    store.set(f"device {processes.rank}", json.dumps([device.type, gpu]))
    found = [json.loads(store.get(f"device {rank}")) for rank in range(processes.world)]
    for rank, (kind, used) in enumerate(found):
        if kind != found[0][0]:
            raise ConfigError(
                f"train.device is {kind} in process {rank} and {found[0][0]} in process 0: use "
                "machines with as many GPUs as processes, or train.device=cpu."
            )
        if used and used in (other for _, other in found[:rank]):
            raise ConfigError(
                f"train.device: process {rank} and another use the same GPU ({used}): start no "
                "more processes per node than GPUs, or use train.device=cpu."
            )
