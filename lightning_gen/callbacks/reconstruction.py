"""What an autoencoder keeps of its images, in numbers and in pictures."""

from dataclasses import replace
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_gen.callbacks.fidelity import Fidelity, Split, logged
from lightning_gen.callbacks.sample_grid import SampleGrid
from lightning_gen.images import enlarge, from_uint8, image_grid, to_uint8
from lightning_gen.labels import NO_LABELS
from lightning_gen.metrics import Score
from lightning_gen.metrics.protocol import RECONSTRUCTED
from lightning_gen.metrics.reference import read_images
from lightning_gen.module import GenerativeModule


class ReconstructionFidelity(Fidelity):
    """Measure how far the reconstructions of a split are from the split itself, after every validation and in `test`.

    The scores are those of `Fidelity` with reconstructions in the place of samples; their names begin with "r", as
    papers write rFID.

    Args:
        metrics: any of "fid", "kid" (Inception), "fd-lenet5" (digits).
        n: images reconstructed; all of the split where it has fewer.
        split: reference of the scores during training.
        test_split: reference of the scores in `test`.
        batch_size: images reconstructed and measured at once.
        weights: which weights reconstruct; None for the module's own choice.
        weights_path: the Inception network's weights, a file or a folder; None searches, then downloads.
        test_n: number of images in `test`; None for n.

    Raises:
        ValueError: for a metric that does not compare with images.
    """

    def __init__(
        self,
        metrics: list[str],
        n: int = 10_000,
        split: Split = "val",
        test_split: Split = "test",
        batch_size: int = 64,
        weights: str | None = None,
        weights_path: str | None = None,
        test_n: int | None = None,
    ) -> None:
        unknown = [metric for metric in metrics if f"r{metric}" not in RECONSTRUCTED]
        if unknown:
            raise ValueError(
                f"Reconstructions are measured by {', '.join(name[1:] for name in RECONSTRUCTED)}; given was"
                f" {', '.join(unknown)}."
            )
        super().__init__(metrics, n, split, test_split, 0, batch_size, weights, weights_path, test_n)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, split: Split, n: int) -> list[Score]:
        reconstruct = reconstructing(pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = data.split(split)
        how = {} if self.weights is None else {"weights": self.weights}

        def source(first: int, count: int) -> Tensor:
            batch = on_device(read_images(images, first, count), pl_module)
            return to_uint8(reconstruct(batch, **how, **classes_of(images, first, count, pl_module)))

        used = cast(GenerativeModule, pl_module).weights_used(**how)
        scores = self._evaluator(trainer, split)(source, min(n, len(images)), seed=None, weights=used)
        return logged([replace(score, metric=f"r{score.metric}") for score in scores.values()], pl_module)


class ReconstructionGrid(SampleGrid):
    """Write a grid of images of a split, each over its reconstruction, to `reconstructions/` in the run folder.

    Args:
        every_n_steps: iterations between two grids; one more is made at the end of training.
        n: number of images.
        split: where they are from; the first ones are shown.
        weights: which weights reconstruct; None for the module's own choice.
    """

    folder = "reconstructions"

    def __init__(self, every_n_steps: int = 500, n: int = 32, split: Split = "val", weights: str | None = None) -> None:
        super().__init__(every_n_steps, n, weights=weights)
        self.split = split

    def grid(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """Return the grid, bytes `(C, H, W)`: rows of images, and under each row their reconstructions."""
        reconstruct = reconstructing(pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images = data.split(self.split)
        shown = read_images(images, 0, min(self.n, len(images)))
        how = classes_of(images, 0, len(shown), pl_module)
        how |= {} if self.weights is None else {"weights": self.weights}
        made = to_uint8(reconstruct(on_device(shown, pl_module), **how)).cpu()
        columns = min(8, len(shown))
        rows = [torch.cat(pair) for pair in zip(torch.split(shown, columns), torch.split(made, columns), strict=True)]
        if len(rows[-1]) < 2 * columns:  # a last row with fewer images has gaps
            gap = shown.new_zeros(columns - len(rows[-1]) // 2, *shown.shape[1:])
            first, second = rows[-1].chunk(2)
            rows[-1] = torch.cat([first, gap, second, gap])
        return enlarge(image_grid(torch.cat(rows), columns=columns))


def on_device(images: Tensor, module: LightningModule) -> Tensor:
    """Turn bytes into what a module takes."""
    return from_uint8(images).to(device=module.device, dtype=cast(torch.dtype, module.dtype))


def classes_of(images: Any, first: int, count: int, module: LightningModule) -> dict[str, Any]:
    """Return the argument `cond` of a conditional model, the classes of images; nothing for another one."""
    if getattr(module, "num_classes", None) is None:
        return {}
    labels = getattr(images, "labels", None)
    if labels is None:
        raise ValueError(NO_LABELS)
    return {"cond": labels[first : first + count]}


def reconstructing(module: LightningModule) -> Any:
    """Return what reconstructs images.

    Raises:
        MisconfigurationException: where the module does not.
    """
    reconstruct = getattr(module, "reconstruct", None)
    if reconstruct is None:
        raise MisconfigurationException(
            f"Reconstructions are those of an Autoencoder or a VAE; a {type(module).__name__} makes none: use Fidelity"
            " and SampleGrid."
        )
    return reconstruct
