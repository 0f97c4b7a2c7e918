"""Latents cached on disk as a data module: training reads them in the place of the images they were made of."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_gen.data.base import Description, ImageDataModule
from lightning_gen.data.datasets import Batch, ImageDataset, Split
from lightning_gen.data.latent_index import LATENTS, LatentFile, LatentIndex, read_latent_index
from lightning_gen.errors import MissingData


class LatentSet(ImageDataset):
    """Latents of a split, mapped into memory; an element is `{"latent": float (c, h, w), "label": int64 ()}`.

    Args:
        folder: where the files are.
        files: in order.
        labels: of the images, int64 `(N,)`; None where there are none.
        mirrored: latents of the mirrored images; None where they are never asked for.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[LatentFile],
        labels: Tensor | None,
        mirrored: "LatentSet | None" = None,
    ) -> None:
        self.labels, self.mirrored = labels, mirrored
        self.paths = [folder / file.file for file in files]
        self.starts = np.cumsum([0] + [file.images for file in files])
        self._open: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def batch(self, indices: Tensor) -> Batch:
        """Read the latents of these indices, int64 `(B,)`, in this order, as float32."""
        rows = indices.numpy()
        numbers = np.searchsorted(self.starts, rows, side="right") - 1
        each = [
            self._file(int(number))[int(row - self.starts[number])] for row, number in zip(rows, numbers, strict=True)
        ]
        batch = {"latent": torch.from_numpy(np.stack(each).astype(np.float32))}
        if self.labels is not None:
            batch["label"] = self.labels.index_select(0, indices)
        return batch

    def mirror(self, batch: Batch, indices: Tensor, which: Tensor) -> None:
        """Put the latents of mirrored images in the place of those that `which`, bool `(B,)`, says."""
        if self.mirrored is None:
            raise ValueError("There are no latents of mirrored images here.")
        if which.any():
            batch["latent"][which] = self.mirrored.batch(indices[which])["latent"]

    def _file(self, number: int) -> np.ndarray:
        if number not in self._open:
            self._open[number] = np.load(self.paths[number], mmap_mode="r", allow_pickle=False)
        return self._open[number]

    def __getstate__(self) -> dict[str, object]:
        """Let a worker process map the files anew."""
        return self.__dict__ | {"_open": {}}


class LatentsDataModule(ImageDataModule):
    """Training reads latents that `lightning-gen latents` has written; validation, test and scores read the images.

    Args:
        path: folder with the latents.
        images: the data they were made of, which say whether images are flipped at random.
        check: what is looked at before training: "size", that the files are there and as long as they were; "content",
            every byte of them.
        batch_size: images a batch, over all ranks.
        num_workers: processes that load.
        seed: of the order and the flips.
        n_predict: number of samples that `Trainer.predict` draws.

    Attributes:
        codec_fingerprint: of the codec that made the latents; a model refuses those of another one.

    Raises:
        MissingData: where there are no latents.
        ValueError: where they are of other images, damaged, or the images would be flipped at random and were not
            cached mirrored.
    """

    def __init__(
        self,
        path: str,
        images: ImageDataModule,
        check: Literal["size", "content"] = "size",
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        n_predict: int = 64,
    ) -> None:
        super().__init__(batch_size, num_workers, images.flip, seed, n_predict)
        self.path, self.images, self.check = Path(path).expanduser(), images, check
        if images.flip and not self.index.mirrored:
            raise ValueError(
                "The images were cached as they are, and flip=true would mirror half of them: set flip to false"
                " (--data.images.flip false), or write the latents again by `lightning-gen latents ... --flip`."
            )
        self.name = images.name
        self.codec_fingerprint = self.index.codec

    @cached_property
    def index(self) -> LatentIndex:
        """What is known of the latents."""
        return read_latent_index(self.path)

    @property
    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the training images, `(c,)` float64."""
        return torch.tensor(self.index.mean, dtype=torch.float64), torch.tensor(self.index.std, dtype=torch.float64)

    def _describe(self) -> Description:
        return Description(self.images.shape, self.images.num_classes, self.images.class_names)

    def _load(self, split: Split) -> ImageDataset:
        return self.images.split(split)

    def _fingerprint(self, split: Split) -> str:
        return self.images.fingerprint(split)

    def _training_set(self) -> ImageDataset:
        """Return the latents, after a look at what they were made of."""
        files, mirrored = self.index.splits["train"], self.index.mirrored if self.flip else []
        known, given = self.index.data["train"], self.images.fingerprint("train")
        if known != given:
            raise ValueError(
                f"The latents in {self.path} were made of other training images (fingerprint {known[:16]}, these have"
                f" {given[:16]}): give data.images the data, size and options of the `lightning-gen latents` command,"
                " or write latents of these images to another folder."
            )
        for file in (*files, *mirrored):
            self._check(file)
        flipped = LatentSet(self.path, mirrored, None) if mirrored else None
        return LatentSet(self.path, files, self.images.split("train").labels, flipped)

    def _check(self, file: LatentFile) -> None:
        path = self.path / file.file
        if not path.is_file():
            raise MissingData(f"{path} is no longer there: repeat the `lightning-gen latents` command that wrote it.")
        whole = path.stat().st_size == file.bytes
        if whole and self.check == "content":
            whole = hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256
        if not whole:
            raise ValueError(
                f"{path} is not what was written, the file is damaged: remove it and {LATENTS}, and repeat the"
                " `lightning-gen latents` command that wrote it."
            )
