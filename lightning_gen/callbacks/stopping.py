"""Stopping without losing anything: a signal lets the iteration end, and saves it, on one process or on many."""

import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gen.agreement import Agreement
from lightning_gen.background import wait_for_writing
from lightning_gen.callbacks.last_checkpoint import between_iterations, checkpoint_folder, save_last
from lightning_gen.errors import StoppedBySignal
from lightning_gen.module import trying
from lightning_gen.place import after_each_batch

# Slurm's warning before the time is up is SIGUSR1 by convention
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


class SaveWhenStopped(Callback):
    """Save `last.ckpt` and end the run where a process of it is told to stop: Ctrl-C, SIGTERM, SIGUSR1.

    A signal may reach one process, or all at different moments of an iteration. It is only noted, and all processes
    learn of it at the end of that iteration or the next, where they save together and stop. Within a validation on
    several processes that is after it, on one process after the batch that is being looked at.

    An exception in the middle of an iteration would save half of it: a discriminator that has moved and a generator
    that has not.

    Args:
        dirpath: folder of `last.ckpt`; `checkpoints/` in the run folder where it is not given.

    Raises:
        KeyboardInterrupt: in all processes, after Ctrl-C.
        StoppedBySignal: in all processes, after another signal.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._asked = 0
        self._agreed = 0
        self._trainer: Trainer | None = None
        self._agreement: Agreement | None = None
        self._end: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the folder."""
        self.dirpath = str(checkpoint_folder(trainer, self.dirpath))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; Lightning, which listened for SIGTERM, puts all of them back after the run."""
        self._asked = self._agreed = 0
        self._trainer, self._agreement = trainer, Agreement(trainer)
        self._end = after_each_batch(pl_module, lambda: self._save_if_asked(trainer, pl_module))
        # its own way to tell the others sends from rank 0 alone, and makes a GPU wait in every iteration
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here after a signal, the iteration before being saved and logged; else ask whether there was one."""
        self._stop_if_agreed()
        if self._agreement is not None:
            self._agreement.ask(self._asked)

    def _save_if_asked(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreement is None:
            return
        asked = self._agreement.answer()
        if trainer.world_size == 1:
            asked = self._asked  # also what has come since
        if asked and between_iterations(pl_module):
            self._save(trainer, asked)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here after a signal; the validation comes when the run continues."""
        self._stop_if_agreed()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop within a validation, where no other process has to know."""
        if self._asked and trainer.world_size == 1 and not trainer.sanity_checking:
            self._save(trainer, self._asked)
            self._stop_if_agreed()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop here after a signal."""
        self._stop_if_agreed()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen no more: what is left is short."""
        self._trainer = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the module as it was."""
        self._trainer = None
        if self._end is not None:
            self._end()
            self._end = None

    def _save(self, trainer: Trainer, number: int) -> None:
        if trying(trainer):
            self._agreed = number
            return
        path = save_last(trainer, Path(str(self.dirpath)))
        wait_for_writing(trainer.strategy.checkpoint_io)
        self._agreed = number
        if trainer.is_global_zero:
            print(f"\nsaved {path} at iteration {trainer.global_step}", file=sys.stderr, flush=True)

    def _stop_if_agreed(self) -> None:
        if self._agreed == signal.SIGINT:
            raise KeyboardInterrupt
        if self._agreed:
            raise StoppedBySignal(self._agreed)

    def _note(self, number: int, frame: FrameType | None) -> None:
        running = self._trainer is not None and (self._trainer.training or self._trainer.validating)
        if number == signal.SIGINT and (self._asked == number or not running):
            raise KeyboardInterrupt
        if not running:
            raise StoppedBySignal(number)
        self._asked = self._asked or number
        if number == signal.SIGINT:
            print("\nstopping after this iteration; Ctrl-C again stops at once", file=sys.stderr, flush=True)


def _nothing() -> None:
    """Do nothing."""
