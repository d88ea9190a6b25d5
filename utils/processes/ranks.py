"""Which launcher started this process, and its rank among those that it started.

mpiexec/mpirun (through mpi4py), torchrun and srun are recognised by their environment variables.
"""

import os
import re
from dataclasses import dataclass
from typing import ClassVar

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MV2_COMM_WORLD_SIZE")


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

    @property
    def one_node(self) -> bool:
        """Whether all processes are on this machine."""
        return self.local_world == self.world

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


def from_torchrun() -> Processes:
    """Ranks from torchrun, or from whoever sets its variables."""
    rank, world, local = (int(os.environ[k]) for k in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Processes(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", 1)), "torchrun")


def from_srun() -> Processes:
    """Ranks from SLURM; the rendezvous is on its first node, at a port that the job's id gives."""
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
