"""What a run has recorded for W&B without it."""

import json
from pathlib import Path

from utils.files import write_json


class Records:
    """Which offline records a run's folder has, and up to which position they are complete.

    wandb/recorded.json: {"end": position, "first": {record: position}}. A record that a kill cut
    short may lack its last rows; the next one repeats it from its first, in its place.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "wandb"
        self.file = self.folder / "recorded.json"
        self.end_position, self.first = 0, {}
        if self.file.exists():
            found = json.loads(self.file.read_text())
            self.end_position, self.first = found["end"], found["first"]

    def set_aside(self) -> None:
        """Rename records that were cut short."""
        for record, first in list(self.first.items()):
            path = self.folder / record
            if first == self.end_position and path.exists() and not self.synced(record):
                path.rename(path.with_name(f"cut-short-{record}"))
                del self.first[record]

    def start(self, record: str) -> int:
        """A new one; its first position."""
        self.first[record] = self.end_position
        self._write()
        return self.end_position

    def end(self, position: int) -> None:
        """Everything before `position` is recorded."""
        self.end_position = position
        self._write()

    def synced(self, record: str) -> bool:
        """Whether W&B's client has marked it as uploaded."""
        return bool(list((self.folder / record).glob("*.synced")))

    def _write(self) -> None:
        write_json(self.file, {"end": self.end_position, "first": self.first})
