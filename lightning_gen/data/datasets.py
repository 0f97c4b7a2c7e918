r"""Images as data sets, a batch at a time.

A data set here answers `batch(indices)` with one dict of tensors: for images held in memory that is one
`index_select`, with no Python per image. `BatchView` puts the loader's indices through it: index
:math:`k` stands for image :math:`i = k \bmod n` in epoch :math:`e = \lfloor k / n \rfloor`, so that what
is drawn for an image is a function of (seed, e, i) wherever it is drawn, in this process or in a worker.

References:
    Fast Splittable Pseudorandom Number Generators (the finalizer that decides the flips)
    https://doi.org/10.1145/2660193.2660195
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_gen.seeding import mix

Batch = dict[str, Tensor]
Split = Literal["train", "val", "test"]


class ImageDataset(Dataset[Batch], ABC):
    """Images of one shape as bytes, with labels or without.

    An element is `{"image": uint8 (C, H, W), "label": int64 ()}`, a batch the same with B in front;
    "label" is missing where the images have none.
    """

    labels: Tensor | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: Tensor) -> Batch:
        """Fetch the images of these indices, int64 `(B,)`, in this order."""

    def mirror(self, batch: Batch, indices: Tensor, which: Tensor) -> None:
        """Mirror images of a batch left to right: those that `which`, bool `(B,)`, says."""
        batch["image"] = torch.where(which.view(-1, 1, 1, 1), batch["image"].flip(-1), batch["image"])

    def __getitem__(self, index: int) -> Batch:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"Image {index} was asked for, there are {size}.")
        batch = self.batch(torch.tensor([index % size]))
        return {key: values[0] for key, values in batch.items()}


class TensorImages(ImageDataset):
    """Images held in memory.

    Args:
        images: bytes, `(N, C, H, W)`.
        labels: int64, `(N,)`, each in 0 ... num_classes - 1.
        num_classes: number of classes, where there are labels.

    Raises:
        ValueError: where shapes or types do not fit, or a label is out of range.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, num_classes: int | None = None) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"Images are bytes (uint8) of shape (N, C, H, W), given were {images.dtype}"
                f" of shape {tuple(images.shape)}."
            )
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"Images have 1 channel (gray) or 3 (RGB), given were {images.shape[1]}: the shape is"
                f" {tuple(images.shape)}, which should read (N, C, H, W)."
            )
        if (labels is None) != (num_classes is None):
            raise ValueError("labels and num_classes are given together, or neither.")
        if labels is not None and num_classes is not None:
            check_labels(labels, len(images), num_classes)
        self.images, self.labels = images.contiguous(), labels

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor) -> Batch:
        """Fetch the images of these indices, int64 `(B,)`, in this order."""
        batch = {"image": self.images.index_select(0, indices)}
        if self.labels is not None:
            batch["label"] = self.labels.index_select(0, indices)
        return batch


def check_labels(labels: Tensor, n_images: int, num_classes: int) -> None:
    """Raise a ValueError where labels are not one int64 an image in 0 ... num_classes - 1."""
    if labels.dtype != torch.int64 or labels.shape != (n_images,):
        raise ValueError(
            f"{n_images} images need int64 labels of shape ({n_images},), given were {labels.dtype}"
            f" of shape {tuple(labels.shape)}."
        )
    wrong = torch.nonzero((labels < 0) | (labels >= num_classes)).flatten()
    if len(wrong):
        first = int(wrong[0])
        raise ValueError(
            f"{len(wrong)} labels are out of range: the label of image {first} is {int(labels[first])}, with"
            f" num_classes={num_classes} labels lie in 0 ... {num_classes - 1}."
        )


class BatchView(Dataset[Batch]):
    """What a loader reads: whole batches of a data set, flipped at random where wanted.

    Args:
        dataset: the images.
        flip: whether each image is mirrored left to right with probability 1/2.
        seed: of the flips.
    """

    def __init__(self, dataset: ImageDataset, flip: bool = False, seed: int = 0) -> None:
        self.dataset, self.flip, self.seed = dataset, flip, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Batch:
        return {key: values[0] for key, values in self.__getitems__([index]).items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        counted = torch.tensor(indices)
        epochs, rows = counted // len(self.dataset), counted % len(self.dataset)
        batch = self.dataset.batch(rows)
        if self.flip:
            self.dataset.mirror(batch, rows, flips(self.seed, epochs, rows))
        return batch


def as_fetched(batch: Any) -> Any:
    """Collate nothing: `BatchView` gives whole batches."""
    return batch


def flips(seed: int, epochs: Tensor, indices: Tensor) -> Tensor:
    """Decide which images are mirrored: bool `(B,)`, a function of (seed, epoch, index) alone."""
    # a constant that stands for "flip", so that no other use of (seed, epoch) shares these bits
    state = epochs.numpy().astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)
    state = _scramble(_scramble(state + np.uint64(mix(seed, 0xF11B))) + indices.numpy().astype(np.uint64))
    return torch.from_numpy((state >> np.uint64(63)).astype(np.bool_))


def _scramble(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Advance SplitMix64 by one step and apply its finalizer, modulo 2**64."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state = state ^ (state >> np.uint64(31))
    return state
