"""What went wrong in one process, told to the others, which only notice that it is gone."""

import contextlib
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

_KEY = "lightning_gen/failed"


class ShareFailure(Callback):
    """Leave the message of an error where the other processes of the run find it when they lose this one.

    It lies in the store that the processes have found each other by. An error that another process has caused gets an
    attribute `other_process` that says which one and why.
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Tell, or learn."""
        if trainer.world_size == 1 or not isinstance(exception, Exception) or not torch.distributed.is_initialized():
            return
        # the process that keeps the store may be the one that is gone
        with contextlib.suppress(Exception):
            store: Any = torch.distributed.distributed_c10d._get_default_store()
            rank, text = trainer.global_rank, _first_line(exception)
            if not store.check([_KEY]):
                store.set(_KEY, f"process {rank} of {trainer.world_size}: {type(exception).__name__}: {text}")
            told = store.get(_KEY).decode()
            if not told.startswith(f"process {rank} "):
                exception.other_process = told  # type: ignore[attr-defined]


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else ""
