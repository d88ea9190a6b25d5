"""The peers' connections to rank 0, and how each end proves that it belongs to the run.

Rank 0 sends a random challenge; the peer answers with its rank, a challenge of its own and an HMAC
of all that under the run's secret, which rank 0 returns in kind. Anybody else is dropped.
"""

import hmac
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread

from utils.processes.ranks import Processes

CONNECT_TIMEOUT = 600.0  # seconds for all processes to be there: imports may be slow at first
GREETING_TIMEOUT = 5.0  # seconds for one connection to prove itself
MAX_GREETING = 1_000  # bytes of a line of it
RETRY = 0.2  # seconds between attempts to connect


@dataclass(frozen=True)
class Peer:
    """A connected process: the socket, and where it runs."""

    connection: socket.socket
    pid: int
    host: str

    @property
    def is_stopped(self) -> bool | None:
        """Whether it is stopped by a signal; None where that can't be seen from here."""
        if self.host != socket.gethostname():
            return None
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:  # not Linux, or another container
            return None
        return stat.rpartition(")")[2].split()[0] in "Tt"


def own_place() -> list:
    """This process's id and machine, by which others, and people, find it."""
    return [os.getpid(), socket.gethostname()]


def accept_peers(
    server: socket.socket, secret: bytes, world: int, timeout: float = CONNECT_TIMEOUT
) -> dict[int, Peer]:
    """On rank 0: every other rank's connection; closes the server.

    Each connection is greeted by a thread of its own, so that none delays the others.

    Raises:
        ValueError: if some are not there in time; it names them.
    """
    peers, lock, complete = {}, Lock(), Event()

    def greet(connection: socket.socket) -> None:
        with _closed_on_failure(connection):
            rank, place, reply = _challenge(connection, secret)
            with lock:
                if rank in peers or not 0 < rank < world or complete.is_set():
                    raise ValueError(f"rank {rank}")
                connection.sendall(reply)
                peers[rank] = Peer(_with_keepalive(connection), *place)
                if len(peers) == world - 1:
                    complete.set()

    until = time.monotonic() + timeout
    with server:
        server.settimeout(0.05)
        while not complete.is_set() and time.monotonic() < until:
            try:
                connection, _ = server.accept()
            except OSError:  # nobody, or somebody who is gone again
                continue
            Thread(target=greet, args=[connection], daemon=True).start()
    with lock:
        complete.set()
    if missing := sorted(set(range(1, world)) - set(peers)):
        raise ValueError(
            f"Of {world} processes, {', '.join(map(str, missing))} did not connect to the main one "
            f"within {timeout:.0f} s: see what they print, and whether a firewall is between."
        )
    return peers


def connect(
    address: tuple[str, int],
    place: list,
    secret: bytes,
    processes: Processes,
    timeout: float = CONNECT_TIMEOUT,
) -> Peer:
    """On the others: the connection to rank 0, which listens at `address`.

    place: its `own_place`.

    Raises:
        ValueError: if it cannot be reached, or does not take this process for one of the run.
    """
    until, error = time.monotonic() + timeout, None
    while time.monotonic() < until:
        try:
            connection = socket.create_connection(address, GREETING_TIMEOUT)
            with _closed_on_failure(connection, tell=True):
                _answer(connection, secret, processes.rank, until)
                return Peer(_with_keepalive(connection), *place)
        except OSError as failure:  # refused, or reset: its queue was full of others
            error = failure
            time.sleep(RETRY)
    raise ValueError(
        f"Process {processes.rank} could not connect to the main one at {address[0]}:{address[1]} "
        f"within {timeout:.0f} s ({error}): is a firewall between them? Several machines must have "
        "the same LADDER_VAE_SECRET, or none."
    )


def _challenge(connection: socket.socket, secret: bytes) -> tuple[int, list, bytes]:
    """A peer's rank and place, if it knows the secret, and what to reply."""
    challenge, until = secrets.token_hex(16), time.monotonic() + GREETING_TIMEOUT
    connection.settimeout(GREETING_TIMEOUT)
    connection.sendall(f"{challenge}\n".encode())
    greeting = json.loads(_read_line(connection, until))
    rank, place, theirs = greeting["rank"], greeting["place"], greeting["challenge"]
    expected = _proof(secret, challenge, rank, place, theirs)
    if not (_same(greeting["proof"], expected) and isinstance(rank, int)):
        raise ValueError("the secret is another")
    return rank, place, f"{_proof(secret, theirs, 'main')}\n".encode()


def _answer(connection: socket.socket, secret: bytes, rank: int, until: float) -> None:
    """Prove this process to rank 0, and have it prove itself."""
    own = secrets.token_hex(16)
    challenge, place = _read_line(connection, until), own_place()
    proof = _proof(secret, challenge, rank, place, own)
    greeting = {"rank": rank, "place": place, "challenge": own, "proof": proof}
    connection.sendall(f"{json.dumps(greeting)}\n".encode())
    if not _same(_read_line(connection, until), _proof(secret, own, "main")):
        raise ConnectionError("it does not know the run's secret")


def _proof(secret: bytes, *parts: object) -> str:
    return hmac.digest(secret, json.dumps(parts).encode(), "sha256").hex()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _read_line(connection: socket.socket, until: float) -> str:
    """One short line, without its end, before a moment of time.monotonic()."""
    line = b""
    while not line.endswith(b"\n"):
        connection.settimeout(max(0.01, until - time.monotonic()))
        received = connection.recv(1)
        if not received or len(line) > MAX_GREETING or time.monotonic() > until:
            raise ConnectionError("it closed the connection, or said something else")
        line += received
    return line[:-1].decode(errors="replace")


@contextmanager
def _closed_on_failure(connection: socket.socket, tell: bool = False) -> Iterator[None]:
    """Close the connection of whoever fails to prove itself. tell: and raise what was wrong."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        connection.close()
        if tell:
            raise


def _with_keepalive(connection: socket.socket) -> socket.socket:
    """Set up so that a lost machine is detected within half a minute, with or without data."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
    for option, value in options.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection
