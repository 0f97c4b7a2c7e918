"""The checkpoint to continue from: every so many iterations or minutes, and at the end of training."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_gen.agreement import Agreement
from lightning_gen.background import wait_for_writing
from lightning_gen.checkpoint_folders import discard
from lightning_gen.module import GenerativeModule, trying
from lightning_gen.place import after_each_batch

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class LastCheckpoint(Checkpoint):
    """Keep `last.ckpt`, and as `previous.ckpt` the one before it, in case the last one is damaged.

    A checkpoint is made between two iterations: never while gradients of one are being accumulated. Where a validation
    follows, another one is made behind it, so that it is not repeated by a run that continues.

    Args:
        every_n_steps: iterations between two checkpoints; None leaves this out.
        every_minutes: minutes between two checkpoints, of the first process's clock; None leaves this out.
        dirpath: folder; `checkpoints/` in the run folder where it is not given.

    Raises:
        ValueError: where an interval is not above 0.
    """

    def __init__(
        self, every_n_steps: int | None = 1000, every_minutes: float | None = None, dirpath: str | None = None
    ) -> None:
        super().__init__()
        for name, value in (("every_n_steps", every_n_steps), ("every_minutes", every_minutes)):
            if value is not None and value <= 0:
                raise ValueError(f"LastCheckpoint takes {name} above 0, or null for never; given was {value}.")
        self.every_n_steps, self.every_minutes = every_n_steps, every_minutes
        self.dirpath = dirpath
        self._saved = -1
        self._clock = 0.0
        self._time_is_up: Agreement | None = None
        self._end: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the folder."""
        self.dirpath = str(checkpoint_folder(trainer, self.dirpath))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved, self._clock = -1, time.monotonic()
        self._end = after_each_batch(pl_module, lambda: self._save_if_due(trainer, pl_module))
        self._time_is_up = Agreement(trainer) if self.every_minutes is not None else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Ask the first process whether the time is up."""
        if self._time_is_up is not None and self.every_minutes is not None:
            over = trainer.is_global_zero and time.monotonic() - self._clock >= 60 * self.every_minutes
            self._time_is_up.ask(int(over))

    def _save_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        time_is_up = self._time_is_up is not None and bool(self._time_is_up.answer())
        step = trainer.global_step
        if trying(trainer) or step == self._saved or not between_iterations(pl_module):
            return
        interval = self.every_n_steps is not None and step % self.every_n_steps == 0
        # made here and not at the end of training, an epoch that is cut short can be continued with a larger limit
        if interval or time_is_up or step == trainer.max_steps:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save again behind a validation, where it had been saved before it."""
        if not trainer.sanity_checking and self._saved == trainer.global_step:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the run ended with, unless that has just been saved."""
        if not trying(trainer) and self._saved != trainer.global_step:
            self.save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no more."""
        if self._end is not None:
            self._end()
            self._end = None

    def save(self, trainer: Trainer) -> None:
        """Save now; all processes do so together."""
        save_last(trainer, Path(str(self.dirpath)))
        self._saved, self._clock = trainer.global_step, time.monotonic()


def save_last(trainer: Trainer, folder: Path) -> Path:
    """Write `last.ckpt` in a folder, and keep the one before as `previous.ckpt`; all processes together.

    At any time one of the two is whole, and as new as any checkpoint was.

    Raises:
        CheckpointNotWritten: where it cannot be written; the one before is left.
    """
    last = folder / LAST
    if trainer.is_global_zero:
        wait_for_writing(trainer.strategy.checkpoint_io)  # which may be this one
        _keep(last, folder / PREVIOUS)
    trainer.save_checkpoint(last, weights_only=False)
    return last


def _keep(last: Path, previous: Path) -> None:
    """Give a checkpoint its second name."""
    if last.is_dir():
        # of a sharded run; there are no links of folders
        discard(previous, last)
    elif last.exists():
        link = previous.with_name(f".{previous.name}.{os.getpid()}.partial")
        link.unlink(missing_ok=True)
        try:
            os.link(last, link)
        except OSError:  # a file system without links
            last.rename(link)
        if previous.is_dir():
            discard(previous)
        os.replace(link, previous)


def checkpoint_folder(trainer: Trainer, given: str | None = None) -> Path:
    """Return where checkpoints go: the folder given, else `checkpoints/` in the run folder; all processes ask."""
    return Path(given) if given else Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"


def between_iterations(module: LightningModule) -> bool:
    """Tell whether no gradient waits for another batch; a module that is not ours is taken to accumulate none."""
    return module.between_iterations if isinstance(module, GenerativeModule) else True
