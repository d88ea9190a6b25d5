"""Two machines, as two network namespaces of this one joined by a cable of their own."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import COMMAND, QUIET, SMALL, environment, metrics, only_run

pytestmark = pytest.mark.slow
RUN = ["experiment=digits_dct_ladder", *SMALL, *QUIET, "task.estimators=[]"]
RUN += ["dataset.data_module.batch_size=100"]
LONG = [*RUN, "train.max_epochs=300", "train.eval_freq=1000"]
NODES = {"ladder-a": "10.213.7.1", "ladder-b": "10.213.7.2"}
PORT = "29571"
# In place of ssh: `reach [-x] HOST COMMAND …`
REACH = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec ip netns exec "$host" sh -c "$*"
"""


def ip(*arguments: str) -> None:
    """iproute2's."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def nodes():
    """Two namespaces in which the host's own name means themselves, as on a misconfigured node."""
    try:
        for name in NODES:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    try:
        cable = [f"{name}-end" for name in NODES]
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for (name, address), end in zip(NODES.items(), cable, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            ip("-n", name, "link", "set", end, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NODES:
            ip("netns", "del", name)


def start(folder, arguments):
    """torchrun on each node, as the README says it: two processes in all."""
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--nnodes", "2"]
    torchrun += ["--nproc-per-node", "1", "--master-addr", NODES["ladder-a"]]
    started = []
    for rank, name in enumerate(NODES):
        node = ["ip", "netns", "exec", name, *torchrun, "--node-rank", str(rank)]
        started.append(
            subprocess.Popen(
                [*node, "--master-port", PORT, *COMMAND[2:], *arguments],
                cwd=folder,
                env=environment(folder),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


@pytest.fixture
def named_nodes(nodes):
    """The namespaces, in each of which the host's name is the first one's, as names should be."""
    places = [Path("/etc/netns", name) for name in NODES]
    names = [f"{address} {name}" for name, address in NODES.items()]
    names[0] += f" {socket.gethostname()}"
    try:
        for place in places:
            place.mkdir(parents=True)
            (place / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        yield
    finally:
        for place in places:
            shutil.rmtree(place, ignore_errors=True)


def finish(processes, timeout=120):
    """(status, output, errors) of each."""
    try:
        return [(p.returncode, *said) for p in processes for said in [p.communicate(None, timeout)]]
    finally:
        for process in processes:
            process.kill()


def test_two_nodes_train_one_model(nodes, tmp_path):
    found = finish(start(tmp_path, RUN))
    assert [status for status, _, _ in found] == [0, 0], found
    assert "batch 100 = 2 process(es) × 1 micro-batch(es) × 50; started by torchrun" in found[0][1]
    assert found[1][1] == "" and len(metrics(only_run(tmp_path))) == 2


def test_two_nodes_by_mpiexec_with_a_host_file(named_nodes, tmp_path):
    """As the README says it, but for ssh; MPI introduces the processes to one another."""
    reach, hosts = tmp_path / "reach", tmp_path / "hosts"
    reach.write_text(REACH)
    reach.chmod(0o755)
    hosts.write_text("\n".join([*NODES, ""]))
    mpiexec = [str(Path(sys.executable).parent / "mpiexec"), "-f", str(hosts), "-n", "2"]
    command = [*mpiexec, "-ppn", "1", "-launcher-exec", str(reach), *COMMAND, *RUN]
    main = subprocess.Popen(
        ["ip", "netns", "exec", "ladder-a", *command],
        cwd=tmp_path,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    [(status, output, errors)] = finish([main])
    assert status == 0, errors
    assert "batch 100 = 2 process(es) × 1 micro-batch(es) × 50; started by mpi" in output
    assert len(metrics(only_run(tmp_path))) == 2


def test_a_node_that_is_gone_ends_the_other(nodes, tmp_path):
    """Its cable cut: nobody closes a connection."""
    processes = start(tmp_path, LONG)
    until = time.monotonic() + 90
    while not list(tmp_path.glob("runs/*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    ip("-n", "ladder-b", "link", "set", "ladder-b-end", "down")
    began = time.monotonic()
    try:
        _, errors = processes[0].communicate(timeout=60)
        seconds = time.monotonic() - began
        print(f"the main node ended {seconds:.0f} s after the other was gone")
        assert processes[0].returncode != 0 and seconds < 60
        assert errors.count("Error in process 1: it was killed, or its machine is gone") == 1
        _, _ = processes[1].communicate(timeout=60)
        assert processes[1].returncode != 0
    finally:
        for process in processes:
            process.kill()
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if (place / "cwd").readlink() == tmp_path:
                    os.kill(int(place.name), signal.SIGKILL)
            except OSError:
                continue
