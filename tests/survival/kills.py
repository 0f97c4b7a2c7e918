"""Callbacks that kill, stop or break the process they run in, at a place that the test chooses."""

import multiprocessing
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAt(Callback):
    """Kill this process.

    Args:
        place: "batch" (before an iteration), "half" (before the second optimizer of it moves), "batch_end" (after it,
            before a checkpoint), "saved" (behind that checkpoint, its row not yet logged), "validation" (in its second
            batch), "validation_end" (behind it), "epoch_end", "writing" (half of a checkpoint is on the disk).
        iteration: number of the iteration, from 0.
        rank: which process; -1 for each.
        once: a file that is made at the first time, so that there is no second one.
    """

    def __init__(self, place: str, iteration: int, rank: int = -1, once: str | None = None) -> None:
        self.place, self.iteration, self.rank, self.once = place, iteration, rank, once
        self.moved = 0

    def _here(self, place: str, trainer: Any, iteration: int) -> None:
        if place == self.place and iteration == self.iteration and self.rank in (-1, trainer.global_rank):
            if self.once is not None:
                if Path(self.once).exists():
                    return
                Path(self.once).touch()
            self.act()

    def act(self) -> None:
        """Do what is to be done."""
        die()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.place == "writing":
            self._write_half(trainer)
        if self.place == "saved":
            self._after_saving(trainer)

    def _write_half(self, trainer: Any) -> None:
        save = torch.save

        def stopped(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(content, dict) and content.get("global_step") == self.iteration + 1:
                # in a folder that processes write together it is the last file of all
                with open(file, "wb") if isinstance(file, Path) else nullcontext(file) as half:
                    half.write(b"PK\x03\x04" + bytes(1000))
                    half.flush()
                    os.fsync(half.fileno())
                    die()
            save(content, file, *args, **kwargs)

        torch.save = stopped

    def _after_saving(self, trainer: Any) -> None:
        save = trainer.save_checkpoint

        def saved(*args: Any, **kwargs: Any) -> None:
            save(*args, **kwargs)
            self._here("saved", trainer, trainer.global_step - 1)

        trainer.save_checkpoint = saved

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.moved = 0
        self._here("batch", trainer, trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._here("batch_end", trainer, trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._here("epoch_end", trainer, trainer.global_step - 1)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, *args: Any) -> None:
        if batch_idx == 1:
            self._here("validation", trainer, trainer.global_step - 1)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._here("validation_end", trainer, trainer.global_step - 1)


class KillHalfway(KillAt):
    """Kill this process after one of an iteration's optimizers has moved, and another has not."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.moved += 1
        if self.moved == 2:
            self._here("half", trainer, trainer.global_step)


class SignalAt(KillAt):
    """Send this process a signal.

    Args:
        place: see `KillAt`.
        iteration: number of the iteration, from 0.
        number: of the signal.
        rank: which process; -1 for each.
    """

    def __init__(self, place: str, iteration: int, number: int = int(signal.SIGTERM), rank: int = -1) -> None:
        super().__init__(place, iteration, rank)
        self.number = number

    def act(self) -> None:
        os.kill(os.getpid(), self.number)


class RaiseAt(KillAt):
    """Raise an error in this process."""

    def act(self) -> None:
        raise ValueError("the seventh seal is broken")


class KillWorkerAt(KillAt):
    """Kill a process that loads data, as the kernel does where memory is short."""

    def act(self) -> None:
        multiprocessing.active_children()[0].kill()


class HideAt(KillAt):
    """Take a folder of images away.

    Args:
        folder: which.
        iteration: number of the iteration, from 0.
    """

    def __init__(self, folder: str, iteration: int) -> None:
        super().__init__("batch", iteration)
        self.folder = folder

    def act(self) -> None:
        Path(self.folder).rename(f"{self.folder}-hidden")
