"""What the data sets that torchvision downloads have in common."""

import os
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

from lightning_gen.data.base import Description, ImageDataModule
from lightning_gen.data.datasets import ImageDataset, Split, TensorImages
from lightning_gen.data.decoding import resize_batch
from lightning_gen.errors import MissingData

ROOT_VARIABLE = "LIGHTNING_GEN_DATA"


def mnist_files(official: Any) -> tuple[list[str], list[str]]:
    """Return the unpacked files of a set in MNIST's layout, and where each comes from."""
    packed = [name for name, _ in official.resources]
    below = f"{official.__name__}/raw"
    names = [f"{below}/{name.removesuffix('.gz')}" for name in packed]
    return names, [official.mirrors[0] + name for name in packed]


def cifar_files(official: Any) -> tuple[list[str], list[str]]:
    """Return the unpacked files of a set in CIFAR's layout, and the archive they come from."""
    packed = [name for name, _ in (*official.train_list, *official.test_list)]
    names = [f"{official.base_folder}/{name}" for name in (*packed, official.meta["filename"])]
    return names, [official.url]


class TorchvisionDataModule(ImageDataModule):
    """A data set of torchvision, held in memory.

    The test split is the official one. The validation split is the last `val_size` images of the official
    training set after a permutation by the seed; with `val_size=0` the whole training set is trained on,
    as papers do, and the test set serves for validation too.

    A folder that holds the files is only read.

    Args:
        root: folder of the data; where it is not given, $LIGHTNING_GEN_DATA, else "data".
        download: whether missing files are downloaded to `root`.
        val_size: number of images taken from the training set for validation.
        size: height and width; other than the data set's own, images are resized by an antialiased
            bicubic filter.
        batch_size: images a batch, over all ranks.
        num_workers: processes that load; the images are in memory, 0 is fastest.
        flip: whether training images are mirrored at random; by default as suits the data set.
        seed: of the validation split, the order and the flips.
        n_predict: number of samples that `Trainer.predict` draws.
    """

    native_shape: ClassVar[tuple[int, int, int]]
    classes: ClassVar[tuple[str, ...]]
    flips_by_default: ClassVar[bool] = False
    n_train: ClassVar[int]

    def __init__(
        self,
        root: str | None = None,
        download: bool = True,
        val_size: int = 5000,
        size: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        flip: bool | None = None,
        seed: int = 0,
        n_predict: int = 64,
    ) -> None:
        flip = self.flips_by_default if flip is None else flip
        super().__init__(batch_size, num_workers, flip, seed, n_predict)
        if not 0 <= val_size < self.n_train:
            raise ValueError(
                f"val_size lies in 0 ... {self.n_train - 1}, since {self.name} has {self.n_train} training"
                f" images; given was {val_size}."
            )
        if size is not None and size < 1:
            raise ValueError(f"size is 1 or more, given was {size}.")
        self.root = Path(root or os.environ.get(ROOT_VARIABLE) or "data").expanduser()
        self.download, self.val_size = download, val_size
        self.size = size or self.native_shape[-1]

    # ---- what a subclass gives

    @abstractmethod
    def _torchvision_class(self) -> Any:
        """Return the class of torchvision."""

    @abstractmethod
    def _files(self) -> tuple[list[str], list[str]]:
        """Return the files that must lie below the root, and the addresses they come from."""

    # ---- reading

    def _describe(self) -> Description:
        return Description((self.native_shape[0], self.size, self.size), len(self.classes), list(self.classes))

    def prepare_data(self) -> None:
        """Download what is missing, if allowed; predicting needs no images."""
        predicting = self.trainer is not None and self.trainer.predicting
        if predicting or not self.download or not self._absent():
            return
        try:
            self._torchvision_class()(str(self.root), download=True)
        except (RuntimeError, URLError, OSError) as error:
            raise self._missing(f"The download failed: {' '.join(str(error).split())}") from error

    def setup(self, stage: str | None = None) -> None:
        """Load the splits of a stage, downloading first where no Trainer has done so."""
        if self.trainer is None and stage != "predict":
            self.prepare_data()
        super().setup(stage)

    def _absent(self) -> list[str]:
        return [name for name in self._files()[0] if not (self.root / name).is_file()]

    def _missing(self, why: str) -> MissingData:
        needed, addresses = self._files()
        return MissingData(
            f"The data set {self.name} is not complete in {self.root.absolute()}. {why}\n"
            f"Missing: {', '.join(self._absent()) or 'nothing by name, so a file is damaged'}.\n"
            f"Get: {', '.join(addresses)} (unpacked).\n"
            f"Put so that these exist: {self.root.absolute() / needed[0]} and so on. Or name another folder"
            f" by root=... (--data.root, in evaluate --data_root) or ${ROOT_VARIABLE}."
        )

    def _official(self, train: bool) -> tuple[Tensor, Tensor]:
        """Read images (N, C, H, W) as bytes and labels (N,) of the official training or test set."""
        if self._absent():
            why = "It was not downloaded" + ("." if self.download else ", since download=False.")
            raise self._missing(why)
        try:
            official = self._torchvision_class()(str(self.root), train=train, download=False)
        except Exception as error:  # whatever a damaged file makes of torchvision's readers
            raise self._missing(f"It cannot be read: {error}") from error
        images = torch.as_tensor(np.asarray(official.data))
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        return images, torch.as_tensor(official.targets, dtype=torch.int64)

    def _load(self, split: Split) -> ImageDataset:
        from_train = split == "train" or (split == "val" and self.val_size > 0)
        images, labels = self._official(train=from_train)
        if from_train:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
            n_train = len(images) - self.val_size
            chosen = (order[:n_train] if split == "train" else order[n_train:]).sort().values
            images, labels = images[chosen], labels[chosen]
        return TensorImages(resize_batch(images, self.size), labels, len(self.classes))
