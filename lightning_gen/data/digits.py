"""The handwritten digits inside scikit-learn: real images that need no download.

1,797 gray images of 8x8, whose values 0 ... 16 become bytes by round(255 v / 16).

References:
    Optical Recognition of Handwritten Digits
    https://doi.org/10.24432/C50P49
"""

import numpy as np
import torch

from lightning_gen.data.base import Description, ImageDataModule
from lightning_gen.data.datasets import ImageDataset, Split, TensorImages
from lightning_gen.data.decoding import resize_batch


class DigitsDataModule(ImageDataModule):
    """scikit-learn's digits, split 80 / 10 / 10 within each class by the seed.

    Args:
        size: height and width; other than 8, images are resized by an antialiased bicubic filter.
        batch_size: images a batch, over all ranks.
        num_workers: processes that load; the images are in memory, 0 is fastest.
        flip: whether training images are mirrored at random, which makes other signs of digits.
        seed: of the splits, the order and the flips.
        n_predict: number of samples that `Trainer.predict` draws.
    """

    name = "digits"

    def __init__(
        self,
        size: int = 8,
        batch_size: int = 64,
        num_workers: int = 0,
        flip: bool = False,
        seed: int = 0,
        n_predict: int = 64,
    ) -> None:
        super().__init__(batch_size, num_workers, flip, seed, n_predict)
        if size < 1:
            raise ValueError(f"size is 1 or more, given was {size}.")
        self.size = size

    def _describe(self) -> Description:
        return Description((1, self.size, self.size), 10, [str(digit) for digit in range(10)])

    def _load(self, split: Split) -> ImageDataset:
        from sklearn.datasets import load_digits

        digits = load_digits()
        bytes_ = np.round(digits.images * (255 / 16)).astype(np.uint8)
        labels = torch.from_numpy(digits.target.astype(np.int64))
        chosen = self._chosen(split, labels)
        images = resize_batch(torch.from_numpy(bytes_[:, None])[chosen], self.size)
        return TensorImages(images, labels[chosen], 10)

    def _chosen(self, split: Split, labels: torch.Tensor) -> torch.Tensor:
        """Return the indices of a split, ascending: a tenth of each class for "val", another for "test"."""
        generator = torch.Generator().manual_seed(self.seed)
        parts = []
        for digit in range(10):
            members = torch.nonzero(labels == digit).flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            tenth = round(len(members) / 10)
            start, stop = {"val": (0, tenth), "test": (tenth, 2 * tenth), "train": (2 * tenth, None)}[split]
            parts.append(members[start:stop])
        return torch.cat(parts).sort().values
