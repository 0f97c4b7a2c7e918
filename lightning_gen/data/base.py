"""What all image data modules share: splits, loaders, resuming, and the description of the images.

Batches are dicts, `{"image": uint8 (B, C, H, W), "label": int64 (B,)}`, without "label" where the images
have none. Images stay bytes until they are on the device, where the module makes them floats in [-1, 1].

The order of training is a function of (seed, epoch), the flip of image i of (seed, epoch, i). The place
in the epoch is in the checkpoint: a run that was cut off goes on with the batch it would have had next.
"""

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_gen.data.datasets import BatchView, ImageDataset, Split, TensorImages, as_fetched
from lightning_gen.data.loading import EpochSampler, Loader, RankSampler, even_batch_size
from lightning_gen.errors import choose

SPLITS: dict[str, Split] = {"train": "train", "val": "val", "test": "test"}
# what Lightning calls the occasions, and the splits it then reads
_STAGES: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": (),
}


class Description(NamedTuple):
    """What a network needs to know of the images before it is built."""

    shape: tuple[int, int, int]
    num_classes: int | None
    class_names: list[str] | None


class Indices(Dataset[int]):
    """The numbers 0 ... n - 1: what `Trainer.predict` goes through, one a sample to draw."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return range(self.n)[index]


class ImageDataModule(LightningDataModule, ABC):
    """Base of the image data modules.

    A subclass says what its images are (`_describe`) and loads a split (`_load`). `shape`, `num_classes`
    and `class_names` are known before `setup`, so that networks can be built from them.

    Training batches are all full, the rest of an epoch being left out, unless there are fewer images than
    one batch: then they are one batch. Validation and test batches hold every image once; on several
    ranks each takes its share, without padding, so the ranks' last batches may differ in size and a mean
    over ranks must be weighted by the number of images.

    Args:
        batch_size: images a batch, over all ranks: each takes its share, so that a run on more of them is the same.
        num_workers: processes that load; 0 loads in the training process, best for images in memory.
        flip: whether training images are mirrored left to right at random.
        seed: of the order, the flips and the splits that are drawn.
        n_predict: number of samples that `Trainer.predict` draws.

    Raises:
        ValueError: where a number is out of range.
    """

    name: str

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        flip: bool = False,
        seed: int = 0,
        n_predict: int = 64,
    ) -> None:
        super().__init__()
        for option, given, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("n_predict", n_predict, 1),
        ):
            if given < least:
                raise ValueError(f"{option} is {least} or more, given was {given}.")
        self.batch_size, self.num_workers = batch_size, num_workers
        self.flip, self.seed, self.n_predict = flip, seed, n_predict
        self._loaded: dict[Split, ImageDataset] = {}
        self._fingerprints: dict[Split, str] = {}
        self._train_loader: Loader | None = None
        self._resume_at: dict[str, int] | None = None

    # ---- what a subclass gives

    @abstractmethod
    def _describe(self) -> Description:
        """Say what the images are, without reading them all."""

    @abstractmethod
    def _load(self, split: Split) -> ImageDataset:
        """Load the images of a split."""

    # ---- what the images are

    @cached_property
    def _description(self) -> Description:
        return self._describe()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self._description.shape

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None where the images have no labels."""
        return self._description.num_classes

    @property
    def class_names(self) -> list[str] | None:
        """Name of each class, None where the images have no labels."""
        return self._description.class_names

    @property
    def class_counts(self) -> Tensor | None:
        """Images of each class in the training split, int64 `(K,)`; None where there are no labels."""
        labels = self.split("train").labels
        if labels is None or self.num_classes is None:
            return None
        return torch.bincount(labels, minlength=self.num_classes)

    def split(self, name: str) -> ImageDataset:
        """Return the images of "train", "val" or "test" as they are, without flips.

        An element is `{"image": uint8 (C, H, W), "label": int64 ()}`; `batch(indices)` fetches many at
        once.

        Raises:
            ValueError: where there is no such split.
            MissingData: where the data are not there.
        """
        split = choose("split", name, SPLITS)
        if split not in self._loaded:
            self._loaded[split] = self._load(split)
        return self._loaded[split]

    def fingerprint(self, name: str) -> str:
        """Name the content of a split for caches of its statistics: 64 hexadecimal digits.

        Here a SHA-256 of the shape and bytes of all images in their order.
        """
        split = choose("split", name, SPLITS)
        if split not in self._fingerprints:
            self._fingerprints[split] = self._fingerprint(split)
        return self._fingerprints[split]

    def _fingerprint(self, split: Split) -> str:
        dataset = self.split(split)
        if not isinstance(dataset, TensorImages):
            raise NotImplementedError(f"{type(self).__name__} does not hold its images in memory.")
        digest = hashlib.sha256(repr(tuple(dataset.images.shape)).encode())
        digest.update(dataset.images.numpy().reshape(-1).data)
        return digest.hexdigest()

    # ---- what Lightning calls

    def setup(self, stage: str | None = None) -> None:
        """Load the splits of a stage, or all three where none is given; predicting reads no images."""
        for split in _STAGES.get(stage, ("train", "val", "test")):
            self.split(split)

    def train_dataloader(self) -> Loader:
        """Give full batches in the order of the epoch, each rank its share."""
        view = BatchView(self._training_set(), flip=self.flip, seed=self.seed)
        sampler = self._train_sampler(view)
        batch_size = self.rank_batch_size
        loader = self._loader(view, sampler, batch_size, drop_last=len(sampler) >= batch_size)
        if self._resume_at is not None:
            loader.load_state_dict(self._resume_at)
            self._resume_at = None  # a later fit with this module begins anew
        self._train_loader = loader
        return loader

    def _training_set(self) -> ImageDataset:
        """Return what training reads."""
        return self.split("train")

    def _train_sampler(self, view: BatchView) -> EpochSampler:
        return EpochSampler(view, **self._ranks(), seed=self.seed)

    def val_dataloader(self) -> Loader:
        """Give every image of the validation split once, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> Loader:
        """Give every image of the test split once, in order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[int]:
        """Give the indices 0 ... n_predict - 1 of the samples to draw, int64 `(B,)`, all ranks as many batches."""
        ranks = self._ranks()["num_replicas"]
        batch_size = even_batch_size(self.n_predict, ranks, -(-self.batch_size // ranks))
        return DataLoader(Indices(self.n_predict), batch_size=batch_size)

    def _evaluation_loader(self, split: Split) -> Loader:
        view, ranks = BatchView(self.split(split)), self._ranks()
        batch_size = even_batch_size(len(view), ranks["num_replicas"], self.rank_batch_size)
        return self._loader(view, RankSampler(view, **ranks), batch_size, drop_last=False)

    def _loader(self, view: BatchView, sampler: EpochSampler | RankSampler, batch_size: int, drop_last: bool) -> Loader:
        return Loader(
            view,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=as_fetched,
        )

    @property
    def rank_batch_size(self) -> int:
        """Images of a batch that this rank takes.

        Raises:
            MisconfigurationException: where the batch does not divide among the ranks.
        """
        ranks = self._ranks()["num_replicas"]
        if self.batch_size % ranks:
            lower = self.batch_size - self.batch_size % ranks
            choices = [str(size) for size in (lower, lower + ranks) if size]
            raise MisconfigurationException(
                f"A batch of batch_size={self.batch_size} images does not divide among {ranks} processes: give"
                f" {' or '.join(choices)} (--data.batch_size)."
            )
        return self.batch_size // ranks

    def _ranks(self) -> dict[str, int]:
        """Return how many ranks share the images and which of them this is, as the strategy sees it."""
        given = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        if given is not None:
            return {"num_replicas": given["num_replicas"], "rank": given["rank"]}
        return {"num_replicas": 1, "rank": 0}

    # ---- resuming

    def state_dict(self) -> dict[str, Any]:
        """Return the place in training: the epoch and the batches it has handed out.

        Lightning keeps the state of loaders too, but drops it where the number of steps is estimated.
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at a place in training."""
        self._resume_at = {key: int(state_dict[key]) for key in ("epoch", "batches")}
        if self._train_loader is not None:
            self._train_loader.load_state_dict(self._resume_at)
