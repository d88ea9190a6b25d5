"""One process or many: who launched us, and how the processes find one another.

mpiexec/mpirun (through mpi4py), torchrun and srun are recognised by their environment. With none
of them, or with one process, nothing is initialised.
"""

import fcntl
import os
import re
import socket
import struct
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist

from utils.processes.peers import Elsewhere, End, Lifeline

PATIENCE = timedelta(hours=4)  # in a collective: a process that is gone ends the others by itself
BROKEN = re.compile("gloo|nccl|closed by peer|connection reset|broken pipe", re.IGNORECASE)
INTERFACE_ADDRESS = 0x8915  # SIOCGIFADDR of Linux
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MV2_COMM_WORLD_SIZE")
_lifeline: Lifeline | None = None
_jobs = 0  # that had several processes


@dataclass(frozen=True)
class Processes:
    """This process's place among all of the run's."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1  # processes on this machine
    launcher: str = "none"

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the terminal."""
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
    """Find the other processes and join them.

    Raises:
        ValueError: if train.ddp asks for what the launcher did not provide.
    """
    global _lifeline, _jobs
    kind = launcher()
    processes, store = _introduced(kind)
    if ddp is True and processes.world == 1:
        raise ValueError(
            "train.ddp=true needs several processes: start with mpiexec -n 4 (or torchrun, srun), "
            "or use train.ddp=auto."
        )
    if ddp is False and processes.world > 1:
        if not processes.is_main:  # one of them says it
            raise SystemExit(1)
        raise ValueError(
            f"train.ddp=false but {kind} started {processes.world} processes: use train.ddp=auto."
        )
    if processes.world > 1:
        rank, world = processes.rank, processes.world
        _jobs += 1
        store = dist.PrefixStore(f"job {_jobs}", store)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if "GLOO_SOCKET_IFNAME" not in os.environ and (name := _interface(host, port)):
            os.environ["GLOO_SOCKET_IFNAME"] = name
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
        _lifeline = Lifeline(rank, world, dist.PrefixStore("ours", store), host)
    return processes


@cache
def _introduced(kind: str) -> tuple[Processes, dist.Store | None]:
    """This process's place, and where it meets the others: found once for all jobs of a command."""
    if kind == "mpi":
        return _from_mpi()
    processes = {"torchrun": _from_torchrun, "srun": _from_srun, "none": Processes}[kind]()
    if processes.world == 1:
        return processes, None
    store, _, _ = next(dist.rendezvous("env://", processes.rank, processes.world))
    return processes, store


def failed(status: int, told: str | None, error: BaseException) -> End | None:
    """This process ends before its time: the others are told, and end too.

    told: what to say of it; None where it was asked to end. Returns how the run ends for the
    person: this way, or another's of which this is the consequence; None for a process alone.
    """
    if _lifeline is None:
        return None
    end = None
    if isinstance(error, Elsewhere) or (
        isinstance(error, RuntimeError) and BROKEN.search(str(error))
    ):
        end = _lifeline.others()
    end = end or _lifeline.fail(status, told)
    same = told is not None and end.error == told  # a mistake that all make is nobody's own
    return replace(end, rank=0) if same else end


def stop() -> None:
    """Leave the process group, if there is one."""
    global _lifeline
    if _lifeline is None:
        return
    ended = _lifeline.end
    _lifeline.close()
    _lifeline = None
    if ended is None:  # else there is nobody to take leave of, and it could wait for ever
        dist.destroy_process_group()


def _from_torchrun() -> Processes:
    rank, world, local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Processes(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", 1)), "torchrun")


def _from_mpi() -> tuple[Processes, dist.Store]:
    """Ranks from mpi4py; rank 0 opens the rendezvous at a free port, and MPI tells the others.

    That is all that MPI is for: the processes then talk by themselves.
    """
    from mpi4py import MPI  # loads the MPI library: only where MPI launched us

    comm = MPI.COMM_WORLD
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    store, place = None, None
    if comm.rank == 0:
        host = "127.0.0.1" if node.size == comm.size else socket.getfqdn()
        store = dist.TCPStore(host, 0, comm.size, is_master=True, wait_for_workers=False)
        place = (host, store.port)
    host, port = comm.bcast(place)
    if store is None:
        store = dist.TCPStore(host, port, comm.size, is_master=False, wait_for_workers=False)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    processes = Processes(comm.rank, comm.size, node.rank, node.size, "mpi")
    MPI.Finalize()  # a process that ends must not wait for the others, nor they for it
    return processes, store


def _interface(host: str, port: int) -> str | None:
    """The network interface towards a host, as gloo wants it named: its own guess is a name's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, port))
            mine = probe.getsockname()[0]
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                try:
                    reply = fcntl.ioctl(probe.fileno(), INTERFACE_ADDRESS, request)
                except OSError:  # it has no address
                    continue
                if socket.inet_ntoa(reply[20:24]) == mine:
                    return name
        except OSError:  # not IPv4, not Linux: gloo guesses
            return None
    return None


def _from_srun() -> Processes:
    """Ranks from SLURM; its first node, and a port made from the job's number, for rendezvous."""
    env = os.environ
    first = env["SLURM_STEP_NODELIST"].split(",")[0]
    if "[" in first:  # node[3-5,8] -> node3
        prefix, _, numbers = first.partition("[")
        first = prefix + numbers.rstrip("]").split("-")[0]
    env.setdefault("MASTER_ADDR", first)
    env.setdefault("MASTER_PORT", str(20_000 + int(env["SLURM_JOB_ID"]) % 20_000))
    world = int(env["SLURM_STEP_NUM_TASKS"])
    local = int(re.match(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0])  # 4(x2),3
    return Processes(int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), local, "srun")
