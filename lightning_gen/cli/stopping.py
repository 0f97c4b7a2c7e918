"""Stopping without losing anything: Ctrl-C and SIGTERM let the iteration end, and save it."""

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class SaveWhenStopped(Callback):
    """Save `checkpoints/last.ckpt` before the process ends by a signal.

    An exception in the middle of an iteration would save half of it: a discriminator that has moved and a
    generator that has not. On several processes, which a signal reaches at different times, nothing is saved
    beyond what a ModelCheckpoint does.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoints" / "last.ckpt"
        self._asked = False
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for Ctrl-C; Lightning listens for SIGTERM, and puts both back after the run."""
        self._asked, self._trainer = False, trainer
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._interrupted)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here after Ctrl-C: the iteration before is saved, and in the loggers."""
        if self._asked:
            raise KeyboardInterrupt

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save after a signal."""
        if trainer.world_size == 1 and (self._asked or trainer.received_sigterm):
            trainer.save_checkpoint(self.path, weights_only=False)
            print(f"\nsaved {self.path} at iteration {trainer.global_step}", file=sys.stderr, flush=True)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self._asked or self._trainer is None or not self._trainer.training:
            raise KeyboardInterrupt
        self._asked = True
        print("\nstopping after this iteration; Ctrl-C again stops at once", file=sys.stderr, flush=True)
