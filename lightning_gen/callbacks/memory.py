"""How much memory a run took."""

import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

_GIB = 2**30


class PeakMemory(Callback):
    """Say at the end of training how much memory each process had at most: the device's, or its own on the CPU.

    The device's is what PyTorch had allocated since training began; on the CPU it is the resident set since the
    process began, the libraries and the network as it was built included.

    Attributes:
        peaks: bytes by process, once training has ended.
    """

    def __init__(self) -> None:
        self.peaks: list[int] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was before."""
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather, and say."""
        mine = _peak(pl_module.device)
        everyone: list[Any] = [mine]
        if trainer.world_size > 1:
            everyone = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, mine)
        self.peaks = everyone
        if trainer.is_global_zero:
            where = "device memory" if pl_module.device.type == "cuda" else "resident memory"
            numbers = ", ".join(f"{peak / _GIB:.2f}" for peak in everyone)
            each = " by process" if len(everyone) > 1 else ""
            print(f"peak {where}: {numbers} GiB{each}", file=sys.stderr, flush=True)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # there is none on Windows

    # kilobytes, but on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
