"""Tables of a run at W&B: sent as part of a row, kept there as artifacts, compared by digest."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from utils.tracking.sinks import FigureTable
from utils.tracking.wandb_client import api, client, find_artifact, wait_until_shown

TIMEOUT = 300  # seconds for W&B to show tables that were sent
ANY_TYPE = "table"  # of an artifact of which only the digest is of interest


def as_row(tables: Sequence[FigureTable]) -> dict[str, Any]:
    """The client's tables by name."""
    return {table.name: _table(table) for table in tables}


def digests(tables: Sequence[FigureTable]) -> dict[str, str]:
    """What W&B's digest of each table will be."""
    found = {}
    for table in tables:
        artifact = client().Artifact(table.name, ANY_TYPE)
        artifact.add(_table(table), table.name)
        found[table.name] = artifact.digest
    return found


def lacking(run_path: str, sent: Mapping[str, str]) -> list[str]:
    """The names of the tables that the run entity/project/run_id has not got at W&B, by digest."""
    server, found = api(), []
    project, _, run_id = run_path.rpartition("/")
    for name, digest in sent.items():
        newest = find_artifact(server, f"{project}/run-{run_id}-{name}:latest")
        if newest is None or newest.digest != digest:
            found.append(name)
    return found


def wait_for(run_path: str, sent: Mapping[str, str]) -> None:
    """Wait until W&B has these tables.

    Raises:
        OSError: if it has not within TIMEOUT.
    """
    wait_until_shown(lambda: lacking(run_path, sent), TIMEOUT)


def _table(table: FigureTable) -> Any:
    rows = [[_cell(value) for value in row] for row in table.rows]
    return client().Table(columns=table.columns, data=rows)


def _cell(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    from PIL import Image  # not at every start

    return client().Image(Image.fromarray(value))  # of an array the client would guess the range
