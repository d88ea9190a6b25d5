"""task=sync: what a run's folder holds, brought to W&B."""

import json
import logging
from pathlib import Path

from utils.errors import ConfigError
from utils.evaluation.scoring import flat
from utils.runs import checkpoints
from utils.runs.folder import RESULTS
from utils.terminal import one_line
from utils.tracking.sinks import METRICS, LocalSink
from utils.tracking.wandb_offline import upload_records
from utils.tracking.wandb_sink import WandbSink

log = logging.getLogger("ladder_vae")


def sync(folder: Path, settings: dict, wandb_id: str) -> str:
    """Bring W&B up to date with a run that is not being trained; the run's name there.

    The records made offline go first, for what only they hold (pictures and histograms of every
    epoch, the machine's figures); then what W&B still lacks of the folder's own record.

    Raises:
        ConfigError: if there is nothing to upload.
        ValueError: if W&B has not got it afterwards.
    """
    rows = LocalSink(folder / METRICS).rows()
    if not rows:
        raise ConfigError(f"run={folder} has recorded no epoch yet: train it first.")

    def session() -> WandbSink:
        group = settings["wandb"]
        return WandbSink(group, folder, folder.name, wandb_id, settings, None, "online", log.info)

    def caught_up(position: int) -> int:
        sink = session()
        sink.begin([row for row in rows if sink.position(row["step"]) < position])
        sink.close(failed=True)  # so far
        return sink.next

    try:
        upload_records(folder, caught_up)
        sink = session()
        _send(sink, folder, rows)
        sink.check_arrival()
    except Exception as error:
        raise ValueError(
            f"run={folder} has not arrived at W&B ({one_line(error)}): check the network and "
            "`wandb login`, and try again."
        ) from error
    return sink.path


def _send(sink: WandbSink, folder: Path, rows: list[dict]) -> None:
    """What a run sends, in the order in which it does."""
    sink.begin(rows)
    results, now = folder / f"{RESULTS}.json", (rows[-1]["epoch"], rows[-1]["step"])
    if results.exists():
        sink.trained(rows[-1]["step"])
        sink.summary(flat(json.loads(results.read_text())))
        sink.pictures(sorted((folder / "figures").glob("*.png")), *now)
        page = folder / "report" / "report.html"
        if page.exists():
            sink.pictures(sorted(page.parent.glob("*.png")), *now)
            sink.page(page, *now)
    for name in ("best", "last"):
        path = folder / "checkpoints" / f"{name}.pth"
        if path.exists():
            sink.checkpoint(name, path, checkpoints.metadata(checkpoints.read(path)))
    sink.close(failed=not results.exists())
