"""Peer-failure detection: if one rank dies, all exit. Every process keeps a connection to rank 0.

The kernel closes the connection when a process dies, and detects when a machine is gone. A process
that fails sends its error to rank 0 first, which alone reports it to the user.
"""

import json
import os
import secrets
import socket
import sys
from dataclasses import asdict, dataclass
from threading import Event, Lock, Thread
from typing import BinaryIO

import torch.distributed as dist

CONNECT_TIMEOUT = 60  # seconds for all processes to be connected
# Seconds to exit by itself after another process has ended; rank 0 also uploads to W&B.
EXIT_TIMEOUT, MAIN_EXIT_TIMEOUT = 8.0, 20.0
MESSAGE_TIMEOUT = 15.0  # seconds to wait for the peer's message that explains a failure here
ADDRESS = "peer monitor"  # the key in the store
INTERRUPTED_MESSAGE = "Interrupted: the same command goes on from the last checkpoint."


@dataclass(frozen=True)
class Termination:
    """How a process ended: its exit status, and its error (None: it was asked to stop)."""

    rank: int
    status: int
    error: str | None

    @property
    def message(self) -> str:
        """One line for the user."""
        if self.error is None:
            return INTERRUPTED_MESSAGE
        return f"Error{f' in process {self.rank}' if self.rank else ''}: {self.error}"


class PeerFailed(Exception):
    """This process cannot go on because another one has failed."""


class PeerMonitor:
    """This process's connections, and the first termination that any process reported.

    store: where rank 0 publishes the port; host: the address of rank 0.
    """

    def __init__(self, rank: int, world: int, store: dist.Store, host: str):
        self.rank, self.world = rank, world
        self.termination: Termination | None = None  # the first premature one
        self._terminated, self._closed, self._lock = Event(), Event(), Lock()
        if rank == 0:
            self._peers = self._accept(store, host)
        else:
            self._peers = {0: self._connect(store, host)}
        for peer, connection in self._peers.items():
            Thread(target=self._monitor, args=(peer, connection), daemon=True).start()

    def announce_failure(self, status: int, error: str | None) -> Termination:
        """Tell the others that this process ends; returns the first termination of the run."""
        self._record(Termination(self.rank, status, error))
        if self.rank != 0 and self.termination.rank == self.rank:
            self._send(asdict(self.termination))
        return self.termination

    def wait_for_termination(self) -> Termination | None:
        """The termination of another process, if one is reported within MESSAGE_TIMEOUT."""
        self._terminated.wait(MESSAGE_TIMEOUT)
        return self.termination

    def close(self) -> None:
        """This process is done: the others need not end because of it."""
        self._closed.set()
        if self.termination is None:
            self._send({})
        for connection in self._peers.values():
            connection.close()

    def _accept(self, store: dist.Store, host: str) -> dict[int, socket.socket]:
        """On rank 0: connections by rank, from processes that know the token in the store."""
        family, *_, address = socket.getaddrinfo(host, None)[0]
        local = address[0].startswith(("127.", "::1"))
        token, peers = secrets.token_hex(8), {}
        with socket.create_server((host if local else "", 0), family=family) as server:
            server.settimeout(CONNECT_TIMEOUT)
            store.set(ADDRESS, json.dumps([server.getsockname()[1], token]))
            while len(peers) < self.world - 1:
                connection, _ = server.accept()
                connection.settimeout(CONNECT_TIMEOUT)
                greeting = connection.recv(64).decode(errors="replace").split()
                if len(greeting) == 2 and greeting[0] == token:
                    peers[int(greeting[1])] = _with_keepalive(connection)
                else:  # not a process of this run
                    connection.close()
        return peers

    def _connect(self, store: dist.Store, host: str) -> socket.socket:
        port, token = json.loads(store.get(ADDRESS))
        connection = socket.create_connection((host, port), CONNECT_TIMEOUT)
        connection.sendall(f"{token} {self.rank}".encode())
        return _with_keepalive(connection)

    def _monitor(self, peer: int, connection: socket.socket) -> None:
        """Wait for a peer's message or the end of its connection; on a failure, exit in time."""
        try:
            with connection.makefile("rb") as lines:
                message = _read_message(lines)
        except OSError:
            message = None
        if message == {}:  # it has finished
            return
        lost = (
            "it was killed, or its machine is gone; the same command goes on from its checkpoint."
        )
        self._record(Termination(**message) if message else Termination(peer, 1, lost))
        if not self._closed.wait(EXIT_TIMEOUT if self.rank else MAIN_EXIT_TIMEOUT):
            self._print_failure()
            os._exit(self.termination.status)

    def _record(self, termination: Termination) -> None:
        """Keep the first termination; rank 0 forwards it to all."""
        with self._lock:
            if self.termination is not None or self._closed.is_set():
                return
            self.termination = termination
        self._terminated.set()
        if self.rank == 0:
            self._send(asdict(termination))

    def _send(self, message: dict) -> None:
        for connection in self._peers.values():
            try:
                connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                continue  # the peer is gone already

    def _print_failure(self) -> None:
        """On rank 0: report another process's termination to the user."""
        if self.rank == 0 and self.termination.rank != 0:
            print(self.termination.message, file=sys.stderr, flush=True)


def _with_keepalive(connection: socket.socket) -> socket.socket:
    """Set up for hours without data, with a lost machine detected within half a minute."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def _read_message(lines: BinaryIO) -> dict | None:
    """A peer's message; None where its connection ends without one."""
    line = lines.readline()
    return json.loads(line) if line.endswith(b"\n") else None
