"""A callback that lets a test do something to a job in the middle of its run."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from lightning_gen.callbacks import SaveWhenStopped

PATIENCE = 240


class HoldAt(Callback):
    """Hold this process before an iteration until it is told to stop; not in a job that was put back.

    That it holds is told by a file `holding-RANK` in the working folder, with the name of the node.

    Args:
        iteration: number of the iteration, from 0.
    """

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self.iteration or "SLURM_RESTART_COUNT" in os.environ:
            return
        Path(f"holding-{trainer.global_rank}").write_text(os.environ["SLURMD_NODENAME"])
        stopping = next(callback for callback in trainer.callbacks if isinstance(callback, SaveWhenStopped))
        until = time.monotonic() + PATIENCE
        while not stopping._asked:
            if time.monotonic() > until:
                raise TimeoutError("nobody came")
            time.sleep(0.05)
