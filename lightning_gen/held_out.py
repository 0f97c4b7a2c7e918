"""What a module does with images it has not been trained on: the same for the same image, in every run."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_gen.seeding import SampleStreams, mix, seed_device
from lightning_gen.sharding import share_statistics


class HeldOut(LightningModule):
    """The part of a module that validates and tests.

    Attributes:
        held_out_images: images that the last validation or test has logged means of, as many as its processes had each.
    """

    held_out_images: int = 0
    _held_out: int = 0

    def held_out_protocol(self) -> dict[str, str]:
        """Say how the means that a test logs are measured, by their names: what a result has to state."""
        return {}

    def held_out_stream(self, n: int, dtype: torch.dtype) -> SampleStreams:
        """Return what the next images of a validation or a test draw from: always the same for the same image.

        On several processes, each takes every so many-th image, as the data modules here share them out.

        Args:
            n: images of the batch on this process; they are counted.
            dtype: of the numbers.
        """
        indices = self.held_out_indices(n)
        self._held_out += n
        return SampleStreams(0, indices, n, self.device, dtype)

    def held_out_indices(self, n: int) -> list[int]:
        """Return the numbers of the next `n` images of this process, in the data of a validation or a test."""
        world = self.trainer.world_size
        return [self.global_rank + world * index for index in range(self._held_out, self._held_out + n)]

    def log_held_out(self, values: dict[str, Tensor], n: int) -> None:
        """Log means over the `n` images of a batch of a validation or a test, for the mean over all of them."""
        self.held_out_images += n * self.trainer.world_size
        # Lightning takes the mean of the processes' numbers of images as a whole number, so it is made one
        self.log_dict(values, batch_size=n * self.trainer.world_size, sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Begin to count the held-out images; all processes look at them by the same running statistics."""
        self._held_out = self.held_out_images = 0
        share_statistics(self)

    def on_test_epoch_start(self) -> None:
        """Begin to count the held-out images; all processes look at them by the same running statistics."""
        self._held_out = self.held_out_images = 0
        share_statistics(self)

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Seed what is drawn besides, such as an augmentation: always the same for the same batch."""
        seed_device(self.device, mix(self.global_rank, batch_idx))

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Seed what is drawn besides, such as an augmentation: always the same for the same batch."""
        seed_device(self.device, mix(self.global_rank, batch_idx))
