"""One progress bar for the whole run, in iterations."""

import sys
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm


class IterationBar(ProgressBar):
    """Show iterations done, their rate, the time left and the values marked for the bar.

    Lightning's bars start anew with each epoch, which for a small data set is every second, and count
    batches. Where the output is no terminal a line is written twice a minute.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: Any = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing, as on all processes but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the iteration the run starts or continues from."""
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=_iterations(trainer),
            initial=trainer.global_step,
            desc="training",
            unit="it",
            disable=not self._enabled,
            dynamic_ncols=terminal,
            mininterval=0.2 if terminal else 30.0,
            maxinterval=10.0 if terminal else 60.0,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar by the iterations that ended, none or one."""
        moved = trainer.global_step - self._bar.n
        if moved <= 0:
            return
        if trainer._logger_connector.should_update_logs and self._enabled:
            shown = self.get_metrics(trainer, pl_module)
            self._bar.set_postfix({name: _short(value) for name, value in shown.items()}, refresh=False)
        self._bar.update(moved)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it stands."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar, so that the error starts on a line of its own."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _iterations(trainer: Trainer) -> int | None:
    """Return the iterations of the run where it is known: by steps, or by epochs of a known length."""
    if trainer.max_steps > 0:
        return int(trainer.max_steps)
    batches = trainer.num_training_batches
    if trainer.max_epochs is None or trainer.max_epochs < 0 or batches == float("inf"):
        return None
    module: Any = trainer.lightning_module
    return trainer.max_epochs * int(batches) // getattr(module, "batches_per_iteration", 1)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
