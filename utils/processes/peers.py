"""Watching one another: if one process fails, dies or is stopped for long, all of them end.

Every process keeps a connection to rank 0. The kernel closes it when a process dies, and detects
when a machine is gone; heartbeats show a process that is stopped, or a machine that hangs. A
process that fails sends its error to rank 0 first, which alone reports it to the user.
"""

import json
import logging
import math
import os
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass
from threading import Event, Lock, Thread
from typing import BinaryIO

from utils.processes.connections import Peer
from utils.processes.ranks import Processes
from utils.processes.witness import Witness

log = logging.getLogger("ladder_vae")

BEAT = 2.0  # seconds between heartbeats
# Seconds without one until it is said: of a process that can be seen to be stopped; of one that
# cannot be seen; of one that runs. That one's heartbeat may wait for C code that holds the
# interpreter's lock, as some imports do.
STOPPED_SILENCE, UNSEEN_SILENCE, RUNNING_SILENCE = 10.0, 55.0, 75.0
# Seconds to exit by itself after another process has ended; rank 0 also uploads to W&B.
EXIT_TIMEOUT, MAIN_EXIT_TIMEOUT = 8.0, 20.0
MESSAGE_TIMEOUT = 15.0  # seconds to wait for the peer's message that explains a failure here
INTERRUPTED_MESSAGE = "Interrupted: the same command goes on from the last checkpoint."
AGAIN = "the same command goes on from its checkpoint."
KILLED = "was killed, or its machine is gone"


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

    peers: on rank 0 all others, elsewhere rank 0.
    """

    def __init__(self, processes: Processes, peers: dict[int, Peer]):
        self.rank = processes.rank
        self._witness = _witness(processes, peers)
        self.termination: Termination | None = None  # the first premature one
        self.stop_asked = Event()  # whether any process was asked to stop, see `ask_to_stop`
        self.stuck_seconds = math.inf  # without a peer's heartbeat, after which the run ends
        self._terminated, self._closed, self._lock = Event(), Event(), Lock()
        self._peers, self._told = peers, False
        # Of the others, the first process of each node speaks where rank 0 cannot.
        self._speaks = processes.rank <= 1 or processes.local_rank == 0
        self._heard, self._gone = set(), set()  # peers, since the last count; for good
        self._silent: set[int] = set()  # those of which that has been said
        for peer in peers:
            Thread(target=self._listen, args=[peer], daemon=True).start()
        Thread(target=self._beat, daemon=True).start()

    def announce_failure(self, status: int, error: str | None) -> Termination:
        """Tell the others that this process ends; returns the first termination of the run."""
        self._record(Termination(self.rank, status, error))
        if self.rank != 0 and self.termination.rank == self.rank:
            self._send({"end": asdict(self.termination)})
        return self.termination

    def wait_for_termination(self) -> Termination | None:
        """The termination of another process, if one is reported within MESSAGE_TIMEOUT."""
        self._terminated.wait(MESSAGE_TIMEOUT)
        return self.termination

    def ask_to_stop(self) -> None:
        """Let all processes know that one of them was asked to stop, by `stop_asked`."""
        if not self.stop_asked.is_set():
            self.stop_asked.set()
            self._send({"stop": True})

    def tell(self, termination: Termination) -> None:
        """Print how the run ended, once."""
        with self._lock:
            told, self._told = self._told, True
        if not told:
            self._say(termination.message)
        if self._witness:
            self._witness.dismiss()

    def close(self) -> None:
        """This process is done: the others need not end because of it."""
        self._closed.set()
        if self._witness:
            self._witness.dismiss()
        if self.termination is None:
            self._send({"done": True})
        for peer in self._peers.values():
            try:  # not closed: what the other end still sends would take the message back
                peer.connection.shutdown(socket.SHUT_WR)
            except OSError:
                continue

    def _listen(self, peer: int) -> None:
        """Take a peer's messages until its connection ends; if that was too early, end in time."""
        done = False
        try:
            with self._peers[peer].connection as connection, connection.makefile("rb") as lines:
                while message := _read_message(lines):
                    self._heard.add(peer)
                    done = done or "done" in message
                    if "stop" in message:
                        self.ask_to_stop()
                    if "end" in message:
                        self._end(Termination(**message["end"]))
        except (OSError, ValueError, TypeError):
            pass  # reset, or no message of ours
        self._gone.add(peer)
        if not done:
            self._end_without(peer, KILLED)

    def _beat(self) -> None:
        """Send heartbeats, and count for how long each peer has been silent.

        Only the time in which this process itself ran counts: a machine that sleeps, or a whole job
        that is suspended, wakes up with all its processes.
        """
        silence, before = dict.fromkeys(self._peers, 0.0), time.monotonic()
        while not self._closed.wait(BEAT):
            now = time.monotonic()
            self._send({"beat": True})
            for peer in self._peers.keys() - self._gone:
                heard = peer in self._heard
                self._heard.discard(peer)
                passed = 0.0 if heard else silence[peer] + min(now - before, 2 * BEAT)
                silence[peer] = passed
                self._judge(peer, passed)
            before = now

    def _judge(self, peer: int, silent: float) -> None:
        """Say that a peer is silent, that it is heard again, or end the run without it.

        silent: for how many seconds it has been.
        """
        limit = f"{self.stuck_seconds / 60:g} minutes (train.stuck_minutes)"
        if silent == 0.0:
            if peer in self._silent and self._speaks:
                self._say(f"Process {peer} is heard again.")
            self._silent.discard(peer)
            return
        patience, why = _patience(self._peers[peer])
        if silent >= self.stuck_seconds and self.termination is None:
            found = (peer, f"has been silent for {limit}: {why}")
            Thread(target=self._end_without, args=found, daemon=True).start()
        elif silent >= patience and peer not in self._silent:
            self._silent.add(peer)
            if self._speaks:
                where = f"pid {self._peers[peer].pid} on {self._peers[peer].host}"
                self._say(
                    f"Process {peer} ({where}) has been silent for {silent:.0f} s: {why}. Without "
                    f"it the run ends after {limit}."
                )

    def _end_without(self, peer: int, reason: str) -> None:
        """End because of what this process has found out about a peer, which may be rank 0."""
        termination = _without(peer, reason)
        if self.rank != 0:  # in case that it wakes up
            self._send({"end": asdict(termination)})
        self._end(termination, tell=self._speaks)

    def _end(self, termination: Termination, tell: bool = False) -> None:
        """Record another process's end, and end in time; tell: say so before anything else."""
        if not self._record(termination):
            return
        if tell:  # at once: the launcher may kill this process in a moment
            self.tell(termination)
        if not self._closed.wait(EXIT_TIMEOUT if self.rank else MAIN_EXIT_TIMEOUT):
            if self.rank == 0:
                self.tell(termination)
            os._exit(termination.status)

    def _record(self, termination: Termination) -> bool:
        """Keep the first termination; rank 0 forwards it to all. Whether this is the first."""
        with self._lock:
            if self.termination is not None or self._closed.is_set():
                return False
            self.termination = termination
        self._terminated.set()
        if self.rank == 0:
            self._send({"end": asdict(termination)})
        return True

    def _send(self, message: dict) -> None:
        for peer in self._peers.values():
            try:
                peer.connection.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                continue  # the peer is gone already

    def _say(self, text: str) -> None:
        """A line for the user, on the terminal and in the main process's log."""
        print(text, file=sys.stderr, flush=True)
        log.info(text)


def _patience(peer: Peer) -> tuple[float, str]:
    """For how many seconds a peer may be silent, and why it would be for longer."""
    stopped = peer.is_stopped
    if stopped is None:
        return UNSEEN_SILENCE, "it is stopped, or its machine hangs"
    return (STOPPED_SILENCE, "it is stopped") if stopped else (RUNNING_SILENCE, "it hangs")


def _without(peer: int, reason: str) -> Termination:
    """The end of the run because of what was found out about a peer."""
    return Termination(peer, 1, f"{'it' if peer else 'the main process'} {reason}; {AGAIN}")


def _witness(processes: Processes, peers: dict[int, Peer]) -> Witness | None:
    """On rank 0 under mpiexec, which kills all others of a process that was killed."""
    if processes.launcher != "mpi" or not processes.is_main or not hasattr(select, "POLLRDHUP"):
        return None
    found = {peer.connection.fileno(): _without(rank, KILLED) for rank, peer in peers.items()}
    messages = {number: termination.message for number, termination in found.items()}
    return Witness(messages, _without(0, KILLED).message)


def _read_message(lines: BinaryIO) -> dict | None:
    """A peer's next message; None where its connection has ended."""
    line = lines.readline()
    return json.loads(line) if line.endswith(b"\n") else None
