"""A witness of a process that is killed under mpiexec, which then kills the others at once.

It is a small process in a session of its own, out of mpiexec's reach, with copies of the main
process's connections. That of the process that was killed is closed tens of milliseconds before
those of the others. It tells nothing that the main process lives to tell itself.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping

PATIENCE = 2.0  # seconds in which mpiexec has killed the main process too


class Witness:
    """On rank 0, the witness's process. messages: what to print, by the socket of a connection.

    own: what to print where the main process itself is the one that was killed.
    """

    def __init__(self, messages: Mapping[int, str], own: str):
        command = [sys.executable, "-S", "-E", __file__, json.dumps(list(messages.items())), own]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=list(messages), start_new_session=True
        )

    def dismiss(self) -> None:
        """The main process has told what there is to tell, or is done."""
        if self._process.stdin.closed:
            return
        try:
            self._process.stdin.write(b"done")
            self._process.stdin.close()
            self._process.wait(PATIENCE)
        except (OSError, subprocess.TimeoutExpired):
            return  # it has been killed


def watch(messages: dict[int, str], own: str) -> str | None:
    """In the witness: the message about the process that was killed; None after `dismiss`."""
    poll, closed = select.poll(), {}
    poll.register(sys.stdin.fileno(), select.POLLIN)
    for connection in messages:
        poll.register(connection, select.POLLRDHUP)
    while True:
        events = {descriptor for descriptor, _ in poll.poll()}
        for connection in messages.keys() & events:
            closed[connection] = time.monotonic()
            poll.unregister(connection)
        if sys.stdin.fileno() in events:
            break
    if os.read(sys.stdin.fileno(), 4):
        return None
    recent = [one for one, moment in closed.items() if time.monotonic() - moment < PATIENCE]
    return messages[min(recent, key=closed.get)] if recent else own


if __name__ == "__main__":
    message = watch(dict(json.loads(sys.argv[1])), sys.argv[2])
    if message is not None:
        print(message, file=sys.stderr, flush=True)
