"""The checkpoint to continue from: every so many iterations, and at the end of training."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gen.module import trying


class LastCheckpoint(ModelCheckpoint):
    """Keep `last.ckpt`, and the checkpoint before it in case the last one is damaged.

    Lightning's own callback leaves out the end of a run whose length is no multiple of the interval.

    Args:
        every_n_steps: iterations between two checkpoints.
        dirpath: folder; `checkpoints/` in the run folder where it is not given.
    """

    def __init__(self, every_n_steps: int = 1000, dirpath: str | None = None) -> None:
        super().__init__(dirpath=dirpath, filename="{step}", every_n_train_steps=every_n_steps, save_last=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what the run ended with, unless that has just been saved."""
        super().on_train_end(trainer, pl_module)
        if not trying(trainer) and self.dirpath and self._last_global_step_saved != trainer.global_step:
            path = Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"
            trainer.save_checkpoint(path, weights_only=False)
            self._last_global_step_saved = trainer.global_step
