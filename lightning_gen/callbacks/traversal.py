"""Pictures of what each dimension of a VAE's latents stands for."""

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_gen.callbacks.fidelity import Split
from lightning_gen.callbacks.reconstruction import classes_of, on_device
from lightning_gen.callbacks.sample_grid import SampleGrid
from lightning_gen.images import enlarge, image_grid, to_uint8
from lightning_gen.metrics.reference import read_images


class TraversalGrid(SampleGrid):
    """Write a grid to `traversals/` in the run folder: a row a dimension, the images whose latents differ in it alone.

    Args:
        every_n_steps: iterations between two grids; one more is made at the end of training.
        image: number of the image in the split whose other dimensions are kept.
        split: where it is from.
        dims: the dimensions shown; None for all.
        span: deviations from 0 that each goes through.
        steps: images in a row.
        weights: which weights encode and decode; None for the module's own choice.
    """

    folder = "traversals"

    def __init__(
        self,
        every_n_steps: int = 500,
        image: int = 0,
        split: Split = "val",
        dims: list[int] | None = None,
        span: float = 3.0,
        steps: int = 9,
        weights: str | None = None,
    ) -> None:
        super().__init__(every_n_steps, steps, weights=weights)
        self.image, self.split, self.dims, self.span = image, split, dims, span

    def grid(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """Return the grid, bytes `(C, H, W)`."""
        traverse = getattr(pl_module, "traverse", None)
        if traverse is None:
            raise MisconfigurationException(
                f"Traversals are those of a VAE; a {type(pl_module).__name__} makes none: use SampleGrid."
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        split = data.split(self.split)
        given = on_device(read_images(split, self.image, 1), pl_module)
        how = classes_of(split, self.image, 1, pl_module)
        how |= {} if self.weights is None else {"weights": self.weights}
        with torch.no_grad():
            rows = traverse(given, self.dims, (-self.span, self.span), self.n, **how)
        return enlarge(image_grid(to_uint8(rows.flatten(0, 1)).cpu(), columns=self.n))
