"""One process's end is the end of all: a connection of each to the main one, held and watched.

The kernel closes it when a process is gone, for whatever reason, and finds out when a machine is.
What a process says of its end before goes to the main one, which alone speaks to the person.
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

CONNECT = 60  # seconds for all to be connected
LEAVE, MAIN_LEAVES = 8.0, 20.0  # seconds to leave by itself when another has ended; it mirrors too
TELL = 15.0  # seconds for another's word to arrive, where what failed here is its consequence
ADDRESS = "lifeline"  # its key in the store
ASKED = "Interrupted: the same command goes on from the last checkpoint."


@dataclass(frozen=True)
class End:
    """How a process ended: its exit status, and what it says of an error (None: it was asked)."""

    rank: int
    status: int
    error: str | None

    @property
    def sentence(self) -> str:
        """For the person."""
        if self.error is None:
            return ASKED
        return f"Error{f' in process {self.rank}' if self.rank else ''}: {self.error}"


class Elsewhere(Exception):
    """What fails here is the consequence of another process's end."""


class Lifeline:
    """This process's end of it. store: where all find the main process; host: its address."""

    def __init__(self, rank: int, world: int, store: dist.Store, host: str):
        self.rank, self.world = rank, world
        self.end: End | None = None  # of the first that ended before its time
        self._ended, self._left, self._lock = Event(), Event(), Lock()
        if rank == 0:
            self._peers = self._accept(store, host)
        else:
            self._peers = {0: self._connect(store, host)}
        for peer, connection in self._peers.items():
            Thread(target=self._watch, args=(peer, connection), daemon=True).start()

    def _accept(self, store: dist.Store, host: str) -> dict[int, socket.socket]:
        family = socket.getaddrinfo(host, None)[0][0]
        token, peers = secrets.token_hex(8), {}
        local = socket.getaddrinfo(host, None)[0][4][0].startswith(("127.", "::1"))
        with socket.create_server((host if local else "", 0), family=family) as server:
            server.settimeout(CONNECT)
            store.set(ADDRESS, json.dumps([server.getsockname()[1], token]))
            while len(peers) < self.world - 1:
                connection, _ = server.accept()
                connection.settimeout(CONNECT)
                said = connection.recv(64).decode(errors="replace").split()
                if len(said) == 2 and said[0] == token:  # not one of ours otherwise
                    peers[int(said[1])] = _held(connection)
                else:
                    connection.close()
        return peers

    def _connect(self, store: dist.Store, host: str) -> socket.socket:
        port, token = json.loads(store.get(ADDRESS))
        connection = socket.create_connection((host, port), CONNECT)
        connection.sendall(f"{token} {self.rank}".encode())
        return _held(connection)

    def _watch(self, peer: int, connection: socket.socket) -> None:
        """Wait for a peer's word, or for its connection to break."""
        try:
            with connection.makefile("rb") as lines:
                said = _last_line(lines)
        except OSError:
            said = None
        if said == {}:  # it is done
            return
        gone = (
            "it was killed, or its machine is gone; the same command goes on from its checkpoint."
        )
        self._note(End(**said) if said else End(peer, 1, gone))
        if not self._left.wait(LEAVE if self.rank else MAIN_LEAVES):
            self.speak()
            os._exit(self.end.status)

    def _note(self, end: End) -> None:
        """The first end counts; the main process passes it on to all."""
        with self._lock:
            if self.end is not None or self._left.is_set():
                return
            self.end = end
        self._ended.set()
        if self.rank == 0:
            self._say(asdict(end))

    def _say(self, content: dict) -> None:
        for connection in self._peers.values():
            try:
                connection.sendall(json.dumps(content).encode() + b"\n")
            except OSError:
                continue  # it is gone already

    def fail(self, status: int, error: str | None) -> End:
        """Tell the others that this process ends; what it then ends with, another's end perhaps."""
        self._note(End(self.rank, status, error))
        if self.rank != 0 and self.end.rank == self.rank:
            self._say(asdict(self.end))
        return self.end

    def others(self) -> End | None:
        """The end of another process, if one comes within moments."""
        self._ended.wait(TELL)
        return self.end

    def speak(self) -> None:
        """On the main process: how another has ended."""
        if self.rank == 0 and self.end.rank != 0:
            print(self.end.sentence, file=sys.stderr, flush=True)

    def close(self) -> None:
        """This process is done: the others need not end for it."""
        self._left.set()
        if self.end is None:
            self._say({})
        for connection in self._peers.values():
            connection.close()


def _held(connection: socket.socket) -> socket.socket:
    """Kept open for hours, and found dead within half a minute where the other machine is gone."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def _last_line(lines: BinaryIO) -> dict | None:
    """What a peer says; None where it ends without."""
    line = lines.readline()
    return json.loads(line) if line.endswith(b"\n") else None
