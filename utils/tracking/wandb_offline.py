"""Offline recordings for W&B in a run's folder, and their upload."""

import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from utils.errors import ConfigError
from utils.files import read_json, write_json

log = logging.getLogger("ladder_vae")


class OfflineRecords:
    """The offline records in a run's folder, and the position up to which they are complete.

    wandb/recorded.json: {"end": position, "first": {record: position}}. A record that was cut short
    by a kill may lack its last rows; the next record then replaces it, from its first row on.
    """

    def __init__(self, folder: Path):
        self.folder = folder / "wandb"
        self.file = self.folder / "recorded.json"
        self.end_position: int = 0
        self.first: dict[str, int] = {}  # the first position of each record
        if self.file.exists():
            with suppress(ConfigError, KeyError):  # damaged: a new record has everything again
                content = read_json(self.file, "remove it")
                self.end_position, self.first = content["end"], content["first"]

    def set_aside(self) -> None:
        """Rename records that were cut short."""
        for record, first in list(self.first.items()):
            path = self.folder / record
            if first == self.end_position and path.exists() and not self.synced(record):
                path.rename(path.with_name(f"cut-short-{record}"))
                del self.first[record]

    def start(self, record: str) -> int:
        """Register a new record; returns its first position."""
        self.first[record] = self.end_position
        self._write()
        return self.end_position

    def end(self, position: int) -> None:
        """Everything before `position` is recorded."""
        self.end_position = position
        self._write()

    def synced(self, record: str) -> bool:
        """Whether W&B's client has marked a record as uploaded."""
        return bool(list((self.folder / record).glob("*.synced")))

    def _write(self) -> None:
        write_json(self.file, {"end": self.end_position, "first": self.first})


def upload_records(folder: Path, upload_rows: Callable[[int], int]) -> None:
    """`wandb sync` a run's offline records, except those of which W&B has rows already.

    upload_rows: uploads the rows before a position, and returns where W&B's history then ends.
    """
    records = OfflineRecords(folder)
    for record, first in sorted(records.first.items(), key=lambda item: item[1]):
        if records.synced(record) or upload_rows(first) > first:
            continue
        sync_record(records.folder / record)


def sync_record(path: Path, entity: str | None = None, project: str | None = None) -> None:
    """`wandb sync` an offline record; whether it has arrived is to be checked afterwards.

    entity, project: in place of the recorded ones.
    """
    command = [sys.executable, "-m", "wandb", "sync", str(path)]
    for option, value in (("--entity", entity), ("--project", project)):
        command += [option, value] if value else []
    result = subprocess.run(command, capture_output=True, text=True)
    log.info("wandb sync: %s %s", result.stdout, result.stderr)
