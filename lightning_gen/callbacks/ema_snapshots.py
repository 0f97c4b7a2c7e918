"""Power-function averages as files, from which others are put together after training."""

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_gen.ema import Averages, PowerEMA
from lightning_gen.module import GenerativeModule, trying
from lightning_gen.posthoc import write_snapshot
from lightning_gen.sharding import whole


class EMASnapshots(Callback):
    """Write the power-function averages of a module every so many images, and at the end of training.

    After training `lightning_gen.posthoc` makes an average of any width from them, without training again. Two
    widths, 0.05 and 0.10, and some tens of snapshots do. Files go to `ema/` in the run folder.

    Args:
        every_n_images: images between two snapshots.
        dirpath: folder; `ema/` in the run folder where it is not given.
    """

    def __init__(self, every_n_images: int = 1_000_000, dirpath: str | None = None) -> None:
        if every_n_images < 1:
            raise ValueError(f"every_n_images is 1 or more; given was {every_n_images}.")
        self.every_n_images, self.dirpath = every_n_images, dirpath
        self._seen, self._written = 0, -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that keeps no such averages."""
        if stage == "fit" and not (isinstance(pl_module, GenerativeModule) and _averages(pl_module)):
            raise MisconfigurationException(
                f"EMASnapshots writes averages with power-function profiles, and this {type(pl_module).__name__} keeps"
                " none: give their relative widths, such as ema_sigma_rels=[0.05, 0.1] of the model."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from where the run starts or goes on."""
        self._seen = pl_module.images_seen  # type: ignore[assignment]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write after the iteration that goes past a multiple of the interval."""
        before, self._seen = self._seen, pl_module.images_seen  # type: ignore[assignment]
        if self._seen // self.every_n_images > before // self.every_n_images:
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the run ended with."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trying(trainer) or self._seen in (0, self._written):
            return
        self._written = self._seen
        # log_dir is agreed on by all processes, so all have to ask
        folder = Path(self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "ema")
        for name, average in _averages(pl_module):
            network = average.network
            parameters = {key for key, _ in network.named_parameters(remove_duplicate=False)}
            state = whole(network.state_dict())
            if not trainer.is_global_zero:
                continue
            buffers = [key for key in state if key not in parameters]
            write_snapshot(folder, name, self._seen, average.sigma_rel, state, buffers)


def _averages(module: LightningModule) -> list[tuple[str, PowerEMA]]:
    """List the power-function averages, each with the name of the `Averages` that it is in."""
    found = [(name, part) for name, part in module.named_modules() if isinstance(part, Averages)]
    return [
        (name, average) for name, part in found for average in part.averages.children() if isinstance(average, PowerEMA)
    ]
