"""The table of a run: `metrics.csv`, one row a logged step, kept whole over any number of resumptions.

A checkpoint made after iteration k holds the rows of that iteration, logged before or after the checkpoint was written.
A run that continues from it drops all that was logged from this iteration on, puts those rows back, and logs the rest
anew: whenever a run is killed, no row is missing and none is there twice.
"""

import csv
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from lightning_gen.files import written_whole
from lightning_gen.place import at_end_of_batch

Row = dict[str, str]
Logged = dict[str, float]
"""Values of one row, "step" among them."""


class RunCSVLogger(Logger):
    """Log to `<folder>/metrics.csv`.

    A run that continues keeps the rows up to its checkpoint and drops those that are going to come again.
    Columns may be added at any time; `step` is the first one.

    As a trainer's first logger it puts the checkpoints in `<folder>/checkpoints`.

    Args:
        folder: the run folder.
        first_step: the iteration at which this run takes up: rows of later steps are dropped. None drops
            those from the first logged step on.
        flush_seconds: rows are on the disk at most so long after they are logged, and by each checkpoint.
        rows: those of the iteration before `first_step`, as the checkpoint holds them; what the file has of
            that iteration is dropped. None keeps it.
    """

    def __init__(
        self,
        folder: str | Path,
        first_step: int | None = None,
        flush_seconds: float = 2.0,
        rows: list[Logged] | None = None,
    ) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self.first_step, self.flush_seconds, self.rows = first_step, flush_seconds, rows
        self.recent: list[Logged] = list(rows or [])  # of the step logged last
        self._columns: list[str] = ["step"]
        self._waiting: list[Row] = []
        self._file: TextIO | None = None
        self._opened, self._flushed = False, 0.0

    @property
    def name(self) -> str:
        """No folder of its own inside the run folder."""
        return ""

    @property
    def version(self) -> str:
        """No folder of its own inside the run folder."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @property
    def root_dir(self) -> str:
        """The run folder."""
        return self.save_dir

    @property
    def experiment(self) -> None:
        """Nothing that could show images."""
        return None

    def log_image(self, key: str, images: Any, step: int | None = None) -> None:
        """Do nothing: the run folder's samples/ holds the pictures."""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Add one row."""
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        if not values:
            return
        step = int(step or 0)
        if not self._opened:
            self._open(step if self.first_step is None else self.first_step)
        self.recent = [logged for logged in self.recent if logged["step"] == step] + [{"step": step, **values}]
        row = {"step": str(step), **{name: _written(value) for name, value in values.items()}}
        self._waiting.append(row)
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite()
        elif time.monotonic() - self._flushed > self.flush_seconds:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that wait."""
        if not self._opened:
            return
        if self._file is None:
            self._file = self.path.open("a", newline="", encoding="utf-8")
        csv.DictWriter(self._file, self._columns, restval="").writerows(self._waiting)
        self._waiting = []
        self._file.flush()
        self._flushed = time.monotonic()

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Have all rows on the disk that the checkpoint stands for."""
        self.save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what waits and close the file; a later `fit` of the same logger adds to it."""
        self.save()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self, first_step: int) -> None:
        rows = [row for row in self._read() if int(row["step"]) < first_step]
        if self.rows is not None:
            rows = [row for row in rows if int(row["step"]) < first_step - 1]
            rows += [{name: _written(value) for name, value in logged.items()} for logged in self.rows]
            self._columns = list(dict.fromkeys([*self._columns, *(name for row in rows for name in row)]))
        self._opened = True
        self._rewrite(rows)

    def _read(self) -> list[Row]:
        """Read what stands in the file; a line that was cut short by a kill is left out."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restkey="")
            self._columns = ["step", *(name for name in reader.fieldnames or [] if name != "step")]
            return [row for row in reader if row.get("step", "").isdigit() and None not in row.values()]

    def _rewrite(self, rows: list[Row] | None = None) -> None:
        """Write the file anew: with other rows, or with more columns."""
        if self._file is not None:
            self._file.close()
            self._file = None
        columns = list(self._columns)
        rows = self._read() if rows is None else rows
        self._columns = list(dict.fromkeys([*self._columns, *columns]))
        with written_whole(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        self.save()


def recent_rows(trainer: Trainer) -> list[Logged] | None:
    """Return what was, or is about to be, logged of the iteration last trained on; None where no table is kept."""
    logger = next((one for one in trainer.loggers if isinstance(one, RunCSVLogger)), None)
    if logger is None:
        return None
    step = trainer.global_step - 1
    rows = [dict(logged) for logged in logger.recent if logged["step"] == step]
    connector = trainer._logger_connector
    if at_end_of_batch(trainer) and connector.should_update_logs:
        values = {name: float(value) for name, value in connector.metrics["log"].items()}
        if values:
            rows.append({"step": step, **values, "epoch": trainer.current_epoch})
    return rows


def _written(value: float) -> str:
    return str(int(value)) if isinstance(value, (bool, int)) or float(value).is_integer() else repr(float(value))
