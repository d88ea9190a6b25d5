"""One process or many: which launcher started them, and how they find one another.

mpiexec/mpirun (through mpi4py), torchrun and srun are recognised by their environment variables.
Without them, or with one process, nothing is initialised.
"""

import os
import re
import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import ClassVar

import torch
import torch.distributed as dist

from utils.processes.peers import PeerFailed, PeerMonitor, Termination

COLLECTIVE_TIMEOUT = timedelta(hours=4)  # peers.py detects a dead process much earlier
CONNECTION_ERRORS = re.compile(
    "gloo|nccl|closed by peer|connection reset|broken pipe", re.IGNORECASE
)
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MV2_COMM_WORLD_SIZE")
_monitor: PeerMonitor | None = None
_distributed_jobs = 0  # of this command, so far: each has its own keys in the store


@dataclass(frozen=True)
class Processes:
    """This process's rank among all processes of the run."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1  # processes on this machine
    launcher: str = "none"

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints to the terminal."""
        return self.rank == 0

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.world} process(es), launched by {self.launcher}"


def launcher() -> str:
    """`mpi`, `torchrun`, `srun` or `none`, from the environment."""
    if "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_WORLD_SIZE" in os.environ:
        return "torchrun"
    if any(name in os.environ for name in MPI_SIZES):
        return "mpi"
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return "srun"
    return "none"


def start(ddp: bool | str) -> Processes:
    """Find the other processes and join them in a process group.

    Raises:
        ValueError: if train.ddp asks for what the launcher did not provide.
    """
    kind = launcher()
    processes, store = _rendezvous(kind)
    _check_requested(ddp, kind, processes)
    if processes.world > 1:
        _join(processes, store)
    return processes


def report_failure(status: int, message: str | None, error: BaseException) -> Termination | None:
    """Tell the other processes that this one ends prematurely, so that they end too.

    message: what to tell the user; None where this process was asked to stop. Returns what the user
    should see: this process's end, or another's that caused it; None for a process alone.
    """
    if _monitor is None:
        return None
    termination = None
    if isinstance(error, PeerFailed) or (
        isinstance(error, RuntimeError) and CONNECTION_ERRORS.search(str(error))
    ):
        termination = _monitor.wait_for_termination()
    termination = termination or _monitor.announce_failure(status, message)
    shared = message is not None and termination.error == message  # all processes make it
    return replace(termination, rank=0) if shared else termination


def stop() -> None:
    """Leave the process group, if there is one."""
    global _monitor
    if _monitor is None:
        return
    termination = _monitor.termination
    _monitor.close()
    _monitor = None
    if termination is None:  # otherwise the others are gone, and this could wait forever
        dist.destroy_process_group()


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


def _join(processes: Processes, store: dist.Store) -> None:
    """Initialise the process group and start to monitor the peers."""
    global _monitor, _distributed_jobs
    rank, world = processes.rank, processes.world
    _distributed_jobs += 1
    store = dist.PrefixStore(f"job {_distributed_jobs}", store)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if "GLOO_SOCKET_IFNAME" not in os.environ and (name := _interface(host, port)):
        os.environ["GLOO_SOCKET_IFNAME"] = name
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=store,
        rank=rank,
        world_size=world,
        timeout=COLLECTIVE_TIMEOUT,
    )
    _monitor = PeerMonitor(rank, world, dist.PrefixStore("ours", store), host)


def _interface(host: str, port: int) -> str | None:
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


@cache
def _rendezvous(kind: str) -> tuple[Processes, dist.Store | None]:
    """This process's rank, and the store shared with the others: one for all jobs of a command."""
    if kind == "mpi":
        return _from_mpi()
    processes = {"torchrun": _from_torchrun, "srun": _from_srun, "none": Processes}[kind]()
    if processes.world == 1:
        return processes, None
    store, _, _ = next(dist.rendezvous("env://", processes.rank, processes.world))
    return processes, store


def _from_torchrun() -> Processes:
    rank, world, local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Processes(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", 1)), "torchrun")


def _from_mpi() -> tuple[Processes, dist.Store]:
    """Ranks from mpi4py; rank 0 opens the store at a free port, which MPI broadcasts.

    MPI is used for nothing else: afterwards the processes communicate through torch.distributed.
    """
    from mpi4py import MPI  # loads the MPI library, which only mpiexec guarantees to be there

    comm = MPI.COMM_WORLD
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    store, address = None, None
    if comm.rank == 0:
        host = "127.0.0.1" if node.size == comm.size else socket.getfqdn()
        store = dist.TCPStore(host, 0, comm.size, is_master=True, wait_for_workers=False)
        address = (host, store.port)
    host, port = comm.bcast(address)
    if store is None:
        store = dist.TCPStore(host, port, comm.size, is_master=False, wait_for_workers=False)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    processes = Processes(comm.rank, comm.size, node.rank, node.size, "mpi")
    MPI.Finalize()  # so that no process waits for another when it ends
    return processes, store


def _from_srun() -> Processes:
    """Ranks from SLURM; rendezvous on its first node, at a port derived from the job's number."""
    env = os.environ
    env.setdefault("MASTER_ADDR", _first_node())
    env.setdefault("MASTER_PORT", str(20_000 + int(env["SLURM_JOB_ID"]) % 20_000))
    world = int(env["SLURM_STEP_NUM_TASKS"])
    local = int(re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0])  # 4(x2),3
    return Processes(int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), local, "srun")


def _first_node() -> str:
    """The first host of the job step: rack1node03 of rack[1-2]node[03-05],gpu8."""
    from submitit.slurm.slurm import SlurmJobEnvironment  # needed under srun only

    class StepEnvironment(SlurmJobEnvironment):
        """The step's nodes, which may be fewer than the job's."""

        _env: ClassVar = {**SlurmJobEnvironment._env, "nodes": "SLURM_STEP_NODELIST"}

    return StepEnvironment().hostnames[0]
