"""Pictures of the same samples, again and again, while a model learns."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities import rank_zero_warn

from lightning_gen.images import enlarge, image_grid, picture, to_uint8, write_png
from lightning_gen.loggers import RunCSVLogger
from lightning_gen.module import GenerativeModule, trying


class SampleGrid(Callback):
    """Write a grid of samples as a PNG, and to every logger that takes pictures.

    The samples are those of one seed, so that successive grids show the same latents. A model with classes
    is asked for each class in turn, one a column. Files go to `samples/` in the run folder, named by the
    iteration.

    Args:
        every_n_steps: iterations between two grids; one more is made at the end of training.
        n: number of samples.
        seed: of the samples.
        weights: which weights draw them, as `sample` takes it; None for the module's own choice.
    """

    folder = "samples"

    def __init__(self, every_n_steps: int = 500, n: int = 64, seed: int = 0, weights: str | None = None) -> None:
        if every_n_steps < 1 or n < 1:
            raise ValueError(f"every_n_steps and n are 1 or more; given were {every_n_steps} and {n}.")
        self.every_n_steps, self.n, self.seed, self.weights = every_n_steps, n, seed, weights
        self._drawn_at = -1
        self._unsupported: set[str] = set()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw after every so many iterations."""
        if trainer.global_step and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the run ended with."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == self._drawn_at or trying(trainer):
            return
        self._drawn_at = step
        grid = self.grid(trainer, pl_module)
        # log_dir is agreed on by all processes, so all have to ask
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if trainer.is_global_zero:
            write_png(folder / self.folder / f"{step:07d}.png", grid)
            for logger in trainer.loggers:
                self._log(logger, grid, step)

    def grid(self, trainer: Trainer, pl_module: LightningModule) -> torch.Tensor:
        """Return what is shown, bytes `(C, H, W)`."""
        return draw_grid(pl_module, self.n, self.seed, self.weights)

    def _log(self, logger: Logger, grid: torch.Tensor, step: int) -> None:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_image"):
            experiment.add_image(self.folder, grid, step)
        elif hasattr(logger, "log_image"):
            # a picture, for some versions of wandb stretch the contrast of an array
            logger.log_image(self.folder, [picture(grid)], step=step)
        elif not isinstance(logger, (CSVLogger, RunCSVLogger)) and type(logger).__name__ not in self._unsupported:
            self._unsupported.add(type(logger).__name__)
            rank_zero_warn(
                f"{type(logger).__name__} takes no pictures; the grids are in the run folder's {self.folder}/."
            )


def draw_grid(module: Any, n: int, seed: int, weights: str | None = None) -> torch.Tensor:
    """Draw samples and lay them out: bytes `(C, H, W)`, small images enlarged.

    Args:
        module: a GenerativeModule of images.
        n: number of samples; with classes, sample i is of class i modulo their number.
        seed: of the samples.
        weights: as `sample` takes it.
    """
    if not isinstance(module, GenerativeModule) or len(module.sample_shape) != 3:
        raise TypeError(f"A grid shows the images of a GenerativeModule; a {type(module).__name__} makes none.")
    how: dict[str, Any] = {} if weights is None else {"weights": weights}
    columns = math.ceil(math.sqrt(n))
    if module.num_classes is not None:
        how["cond"] = torch.arange(n, device=module.device) % module.num_classes
        if module.num_classes <= 2 * columns:
            columns = module.num_classes
    images = module.sample(n, seed=seed, **how)
    return enlarge(image_grid(to_uint8(images).cpu(), columns=columns))
