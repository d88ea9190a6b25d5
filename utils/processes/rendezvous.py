"""Where the processes of a run meet: a key-value store at the first one, and a secret.

Whoever reaches the store can read and write it, so that the secret is never in it.
"""

import errno
import hashlib
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch.distributed as dist

from utils.processes.connections import CONNECT_TIMEOUT
from utils.processes.ranks import Processes, from_srun, from_torchrun

COLLECTIVE_TIMEOUT = timedelta(hours=4)  # peers.py detects a dead or stopped process much earlier
LOOPBACK = "127.0.0.1"
SECRET = "LADDER_VAE_SECRET"  # may be set to the same text for all processes
LAUNCHER_IDS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")


@dataclass(frozen=True)
class Rendezvous:
    """This process's rank; the others' store, the first one's address and what only they know."""

    processes: Processes
    store: dist.Store | None = None  # None for a process alone
    host: str = LOOPBACK
    secret: bytes = b""


@cache
def meet(kind: str) -> Rendezvous:
    """The one rendezvous of a command, for all its jobs; `kind` is that of its launcher."""
    if kind == "mpi":
        return _through_mpi()
    processes = {"torchrun": from_torchrun, "srun": from_srun, "none": Processes}[kind]()
    if processes.world == 1:
        return Rendezvous(processes)
    host = LOOPBACK if processes.one_node else os.environ["MASTER_ADDR"]
    port = int(os.environ["MASTER_PORT"])
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
    if processes.is_main and not hosted:
        store = _host_store(host, port, processes)
    else:
        store = _join_store(host, port)
    return Rendezvous(processes, store, host, derived_secret())


def derived_secret() -> bytes:
    """What torchrun and srun let the processes share: their ids, and LADDER_VAE_SECRET if set.

    The ids tell runs apart but can be guessed; MPI broadcasts a random secret instead.
    """
    parts = (os.environ.get(name, "") for name in (SECRET, *LAUNCHER_IDS))
    return hashlib.sha256("\n".join(parts).encode()).digest()


def listen(host: str, port: int, one_node: bool) -> socket.socket:
    """A listening socket on the loopback interface for one node, else at the launcher's address.

    It is on all interfaces where `host` names none of this machine's that others can reach, as
    where a machine's own name means 127.0.1.1. port: 0 for any.
    """
    family, address = (socket.AF_INET, LOOPBACK) if one_node else _own_address(host)
    if address:
        try:
            return socket.create_server((address, port), family=family, backlog=1024)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    both = family == socket.AF_INET6
    return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=both)


def interface(host: str, port: int) -> str | None:
    """The network interface that leads to a host, for gloo, which would go by the own hostname."""
    import psutil  # not at every start

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
        except OSError:  # not IPv4: gloo chooses
            return None
        own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return name
    return None


def _own_address(host: str) -> tuple[int, str]:
    """The family and address that `host` means; no address where it means the loopback one."""
    family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    return family, "" if address[0].startswith(("127.", "::1")) else address[0]


def _host_store(host: str, port: int, processes: Processes) -> dist.Store:
    """On rank 0: the store, which by itself would listen on all interfaces."""
    server = listen(host, port, processes.one_node)
    port = server.getsockname()[1]
    return _tcp_store(host, port, is_master=True, master_listen_fd=server.detach())


def _join_store(host: str, port: int) -> dist.Store:
    return _tcp_store(host, port, is_master=False)


def _tcp_store(host: str, port: int, **role: object) -> dist.Store:
    connecting = timedelta(seconds=CONNECT_TIMEOUT)
    store = dist.TCPStore(host, port, timeout=connecting, wait_for_workers=False, **role)
    store.set_timeout(COLLECTIVE_TIMEOUT)
    return store


def _through_mpi() -> Rendezvous:
    """Ranks from mpi4py; rank 0 opens the store at a free port and broadcasts where it is.

    MPI is used for nothing else: afterwards the processes communicate through torch.distributed.
    """
    from mpi4py import MPI  # loads the MPI library, which only mpiexec guarantees to be there

    comm = MPI.COMM_WORLD
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    processes = Processes(comm.rank, comm.size, node.rank, node.size, "mpi")
    store, shared = None, None
    if processes.is_main:
        host = LOOPBACK if processes.one_node else socket.getfqdn()
        store = _host_store(host, 0, processes)
        shared = (host, store.port, secrets.token_bytes(32))
    host, port, secret = comm.bcast(shared)
    if store is None:
        store = _join_store(host, port)
    MPI.Finalize()  # so that no process waits for another when it ends
    return Rendezvous(processes, store, host, secret)
