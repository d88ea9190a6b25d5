"""A run's mirror at W&B, through the real client."""

import logging
from collections.abc import Callable
from pathlib import Path

from torch import nn

from utils.settings.schema.wandb import Wandb
from utils.terminal import one_line
from utils.tracking.sinks import FigureTable, Sink
from utils.tracking.wandb_axes import AXES, Axes
from utils.tracking.wandb_client import api, client
from utils.tracking.wandb_code import log_code
from utils.tracking.wandb_offline import OfflineRecords
from utils.tracking.wandb_session import log_in, start
from utils.tracking.wandb_tables import as_row, digests, lacking, wait_for
from utils.tracking.wandb_uploads import Uploads

log = logging.getLogger("ladder_vae")
WATCH_EVERY = 100  # optimiser steps between histograms of gradients
ROWS_PER_STEP = 10  # positions in W&B's history per optimiser step
FINAL_ROW = 5  # the first of a step's positions that is used after training


class WandbSink(Sink):
    """A W&B run.

    settings: the wandb group. folder, name, run_id, config: the run's. print_line: shows a line to
    the user.

    The position of a row in W&B's history follows from its step. Therefore, wherever a run was
    interrupted, rows that W&B has are not sent again, and missing ones are.
    """

    def __init__(
        self,
        settings: Wandb,
        folder: Path,
        name: str,
        run_id: str,
        config: dict,
        model: nn.Module | None,
        mode: str,
        print_line: Callable[[str], None],
    ):
        self.wandb = client(settings.api_key)
        self.folder, self.name, self.print_line = folder, name, print_line
        self.records = OfflineRecords(folder)
        mode = log_in(settings, mode)
        if mode == "offline":
            self.records.set_aside()
        job_type = settings.job_type
        self.run = start(settings, folder, name, run_id, config, job_type, mode)
        self._define_metrics()
        if settings.watch and model is not None:
            self.run.watch(model, log_freq=WATCH_EVERY)
        if self.run.offline:
            self.next = self.records.start(Path(self.run.dir).parent.name)
        else:
            self.next = self.run.starting_step  # the first position that W&B has not got
        self.first = self.next
        self.step, self.row = -1, 0  # of the last row
        self.axes = Axes(config["dataset"]["data_module"]["batch_size"])
        self.uploads = Uploads(self.run, name, folder)
        if settings.save_code:
            self.uploads.add("code", lambda: log_code(self.run))
            self.uploads.start()
        log.info("W&B run %s, %s, from position %d", run_id, mode, self.next)

    @property
    def path(self) -> str:
        """entity/project/run_id."""
        return self.uploads.run_path

    def begin(self, rows: list[dict]) -> None:
        """Send the rows that W&B lacks."""
        for row in rows:
            self.log(row, row["epoch"], row["step"])

    def log(self, values: dict[str, float], epoch: int, step: int) -> None:
        """An epoch's row, with its place on every axis."""
        self.axes.advance(values)
        self._log_row(lambda: values, epoch, step)

    def pictures(self, paths: list[Path], epoch: int, step: int) -> None:
        """Pictures as figures/<name>."""
        image = self.wandb.Image
        self._log_row(
            lambda: {f"figures/{path.stem}": image(str(path)) for path in paths}, epoch, step
        )

    def histograms(self, values: dict[str, list[float]], epoch: int, step: int) -> None:
        """Histograms, one per key."""
        histogram = self.wandb.Histogram
        self._log_row(
            lambda: {key: histogram(numbers) for key, numbers in values.items()}, epoch, step
        )

    def page(self, path: Path, epoch: int, step: int) -> None:
        """An HTML page, as report."""
        self._log_row(lambda: {"report": self.wandb.Html(str(path), inject=False)}, epoch, step)

    def tables(self, make: Callable[[], list[FigureTable]], epoch: int, step: int) -> None:
        """Tables as a last row, made and sent beside the uploads of checkpoints."""
        self.uploads.add("tables", lambda: self._send_tables(make(), epoch, step))

    def summary(self, values: dict) -> None:
        """The run's summary."""
        self.run.summary.update(values)

    def checkpoint(self, name: str, path: Path, metadata: dict) -> None:
        """To be uploaded when the run ends, online also in the background now and then."""
        self.uploads.add_checkpoint(name, path, metadata)

    def trained(self, step: int) -> None:
        """Final rows have positions of their own; pending checkpoints are uploaded meanwhile."""
        self.step, self.row = step, FINAL_ROW
        self.uploads.start_online()

    def close(self, failed: bool) -> None:
        """Upload what is pending and finish the run."""
        self.uploads.close()
        later = f"task=sync run={self.folder} uploads"
        if self.uploads.error is not None:
            reason = one_line(self.uploads.error)
            self.print_line(f"W&B has not got everything yet ({reason}); {later} the rest.")
        elif self.run.offline:
            self.print_line(f"Recorded for W&B offline; {later} it.")
        self.run.finish(exit_code=int(failed))
        if self.run.offline:
            self.records.end(self.next)

    def check_arrival(self) -> None:
        """After `close`: verify that W&B has all rows and checkpoints.

        Raises:
            Exception: what prevented it.
        """
        if self.uploads.error is not None:
            raise self.uploads.error
        if self.next > self.first:  # otherwise it had everything before
            last = api().run(self.path).summary.get("_step", -1)
            if last < self.next - 1:
                raise OSError(f"its history ends at position {last}, before {self.next - 1}")
        self.records.end(self.next)

    @staticmethod
    def position(step: int) -> int:
        """The position of a step's first row, which has the epoch's metrics."""
        return ROWS_PER_STEP * step

    def _log_row(self, values: Callable[[], dict], epoch: int, step: int) -> None:
        """The next row of this step, unless W&B has it already."""
        if step != self.step:
            self.step, self.row = step, 0
        position = self.position(step) + self.row
        self.row += 1
        if position >= self.next:
            row = {**self.axes.at(epoch, step), **values()}
            self.run.log(row, step=position, commit=True)
            self.next = position + 1

    def _send_tables(self, tables: list[FigureTable], epoch: int, step: int) -> None:
        """Those that W&B lacks, verified; what it has of an earlier part of the run counts."""
        sent = {}
        if not self.run.offline:
            sent = digests(tables)
            missing = lacking(self.path, sent)
            tables = [table for table in tables if table.name in missing]
        if tables:
            row = {**self.axes.at(epoch, step), **as_row(tables)}
            self.run.log(row, step=self.next, commit=True)
            self.next += 1
        if sent:
            wait_for(self.path, sent)

    def _define_metrics(self) -> None:
        """Plot everything over epochs, or another axis; the summary has the lowest losses."""
        for key in AXES:
            self.run.define_metric(key)
        self.run.define_metric("*", step_metric="epoch")
        for key in ("val/loss", "val/nelbo"):
            self.run.define_metric(key, step_metric="epoch", summary="min")
