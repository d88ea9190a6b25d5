"""Who may connect to the main process: those that prove to belong to the run, and nobody else."""

import contextlib
import json
import socket
import struct
import time
from threading import Thread

import psutil
import pytest
import torch.distributed as dist

from utils.processes import connections, launch, rendezvous
from utils.processes.ranks import Processes

SECRET = b"of this run"


@pytest.fixture
def meeting():
    """(address of a main process of three, the list in which its peers will be, its thread)."""
    server, found = rendezvous.listen("", 0, one_node=True), []

    def accept():
        found.append(connections.accept_peers(server, SECRET, 3, timeout=20))

    thread = Thread(target=accept)
    thread.start()
    yield server.getsockname(), found, thread
    thread.join(30)


def join(address, rank, secret=SECRET, timeout=10.0):
    """Connect as a process of the run does."""
    return connections.connect(address, [1, "main"], secret, Processes(rank, 3), timeout)


def reset(address):
    """A port scanner: connects and is gone at once, without a goodbye."""
    stranger = socket.create_connection(address)
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stranger.close()


def silent(address):
    """Connects and says nothing."""
    return socket.create_connection(address)


def says(text):
    """Says something at once, without having been asked."""

    def stranger(address):
        connection = socket.create_connection(address)
        connection.sendall(text)
        return connection

    return stranger


def wrong_rank(address):
    """Knows the secret, but is no process of the run."""
    with pytest.raises(ValueError, match="could not connect"):
        join(address, 7, timeout=0.2)


def wrong_secret(address):
    """A process of another run."""
    with pytest.raises(ValueError, match="could not connect"):
        join(address, 1, b"of another run", timeout=0.2)


FORGED = {"rank": 1, "place": [1, "a"], "challenge": "b", "proof": "é"}
STRANGERS = {
    "reset": reset,
    "silence": silent,
    "a web browser": says(b"GET / HTTP/1.1\r\n\r\n"),
    "bytes": says(b"\xff\x00" * 5_000),
    "no end": says(b"1" * 500),
    "nesting": says(b"[" * 990 + b"\n"),
    "a list": says(b"[1]\n"),
    "a forged proof": says(json.dumps(FORGED).encode() + b"\n"),
    "wrong rank": wrong_rank,
    "wrong secret": wrong_secret,
}


@pytest.mark.parametrize("stranger", STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_dropped_and_delays_nobody(meeting, stranger):
    address, found, thread = meeting
    kept = stranger(address)
    began = time.monotonic()
    peers = [join(address, rank) for rank in (2, 1)]
    thread.join(10)
    assert time.monotonic() - began < 3 and sorted(found[0]) == [1, 2]
    places = [[peer.pid, peer.host] for peer in found[0].values()]
    assert places == [connections.own_place()] * 2
    for peer in (*peers, *found[0].values()):
        peer.connection.close()
    if kept:
        kept.close()


def test_a_second_process_of_a_rank_is_dropped(meeting):
    address, found, thread = meeting
    first = join(address, 1)
    with pytest.raises(ValueError, match="Process 1 could not connect"):
        join(address, 1, timeout=0.2)
    first.connection.sendall(b"mine\n")
    join(address, 2)
    thread.join(10)
    assert found[0][1].connection.recv(5) == b"mine\n"


def test_who_does_not_come_is_named():
    server = rendezvous.listen("", 0, one_node=True)
    with pytest.raises(ValueError, match="Of 3 processes, 1, 2 did not connect to the main one"):
        connections.accept_peers(server, SECRET, 3, timeout=0.2)
    with pytest.raises(ValueError, match="Process 1 could not connect to the main one"):
        join(("127.0.0.1", 9), 1, timeout=0.2)


def test_a_false_main_process_is_found_out():
    """It cannot answer the challenge, whatever it says."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def pretend():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"00\n")
                    connection.recv(1_000)
                    connection.sendall(b"0" * 64 + b"\n")

        Thread(target=pretend, daemon=True).start()
        with pytest.raises(ValueError, match="it does not know the run's secret"):
            join(server.getsockname(), 1, timeout=0.2)


def listening() -> set[str]:
    """The addresses on which this process listens."""
    found = psutil.Process().net_connections("tcp")
    return {one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN}


def test_on_one_node_the_store_is_on_the_loopback_interface_and_has_no_secret():
    processes = Processes(0, 2, 0, 2)
    store = rendezvous._host_store(rendezvous.LOOPBACK, 0, processes)
    assert listening() == {"127.0.0.1"}
    met = rendezvous.Rendezvous(processes, store, secret=SECRET)
    other = dist.TCPStore("127.0.0.1", store.port, wait_for_workers=False)
    found = []
    job = launch._store(met)
    thread = Thread(target=lambda: found.append(launch._connected(met, job)))
    thread.start()
    said = dist.PrefixStore(f"job {launch._distributed_jobs}", other).get(launch.ADDRESS).decode()
    address, port, place = json.loads(said)
    assert listening() == {"127.0.0.1"} == {address} and SECRET.decode() not in said
    peer = connections.connect((address, port), place, SECRET, Processes(1, 2), 5)
    thread.join(5)
    assert list(found[0]) == [1] and place == connections.own_place()
    peer.connection.close()


def test_on_several_nodes_it_is_at_the_launchers_address(monkeypatch):
    def resolved(address):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **more: found)

    resolved("127.0.1.1")  # a machine's own name, on Debian
    with rendezvous.listen("node1", 0, one_node=False) as server:
        assert server.getsockname()[0] in ("::", "0.0.0.0")
    resolved("203.0.113.7")  # of a router before this machine
    with rendezvous.listen("node1", 0, one_node=False) as server:
        assert server.getsockname()[0] in ("::", "0.0.0.0")
    own = [a.address for found in psutil.net_if_addrs().values() for a in found]
    for address in (a for a in own if a.count(".") == 3 and not a.startswith("127.")):
        resolved(address)
        with rendezvous.listen("node1", 0, one_node=False) as server:
            assert server.getsockname()[0] == address


def test_the_secret_is_that_of_the_run_and_of_who_sets_one(monkeypatch):
    for name in (rendezvous.SECRET, *rendezvous.LAUNCHER_IDS):
        monkeypatch.delenv(name, raising=False)
    found = {rendezvous.derived_secret()}
    for name in (rendezvous.SECRET, *rendezvous.LAUNCHER_IDS):
        monkeypatch.setenv(name, "7")
        found.add(rendezvous.derived_secret())
    assert len(found) == 2 + len(rendezvous.LAUNCHER_IDS) and all(len(s) == 32 for s in found)
