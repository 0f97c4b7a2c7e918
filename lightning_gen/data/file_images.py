"""Image files as a data set: decoded when asked for, or once for all."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from lightning_gen.data.datasets import Batch, ImageDataset, check_labels
from lightning_gen.data.decoding import Decoder, UnreadableImage
from lightning_gen.data.files import ImageFiles


class FileImages(ImageDataset):
    """Images decoded from their files each time they are asked for.

    Args:
        files: where they are read.
        names: of the images, in order.
        decoder: makes an image of a file.
        labels: int64 `(N,)`, where there are labels.
        num_classes: number of classes, where there are labels.
    """

    def __init__(
        self,
        files: ImageFiles,
        names: Sequence[str],
        decoder: Decoder,
        labels: Tensor | None,
        num_classes: int | None,
    ) -> None:
        if labels is not None and num_classes is not None:
            check_labels(labels, len(names), num_classes)
        self.files, self.names, self.decoder, self.labels = files, list(names), decoder, labels

    def __len__(self) -> int:
        return len(self.names)

    def image(self, index: int) -> Tensor:
        """Decode one image, uint8 `(C, H, W)`."""
        name = self.names[index]
        return self.decoder(read(self.files, name), name)

    def batch(self, indices: Tensor) -> Batch:
        """Decode the images of these indices, int64 `(B,)`, in this order."""
        batch = {"image": torch.stack([self.image(index) for index in indices.tolist()])}
        if self.labels is not None:
            batch["label"] = self.labels.index_select(0, indices)
        return batch


def read(files: ImageFiles, name: str) -> bytes:
    """Read a file.

    Raises:
        UnreadableImage: where that fails; names the file.
    """
    try:
        return files.read(name)
    except Exception as error:  # the disk, the archive's checksum or its compression
        raise UnreadableImage(f"{name} cannot be read: {type(error).__name__}: {error}") from error


def decode_all(
    dataset: FileImages, shape: tuple[int, int, int], keep: bool, skip: bool
) -> tuple[Tensor | None, dict[str, str]]:
    """Decode every image, on several threads.

    Args:
        dataset: the images.
        shape: (C, H, W) of each.
        keep: whether the images are wanted, or only the knowledge of which can be read.
        skip: whether unreadable files are left out; otherwise the first in order is an error.

    Returns:
        The images `(N, C, H, W)` that can be read, or None; and why each other one cannot, by name.

    Raises:
        UnreadableImage: at an unreadable file, unless they are skipped.
        UnexpectedImage: at an image that is unlike the others.
    """

    def attempt(index: int) -> Tensor | UnreadableImage:
        try:
            return dataset.image(index)
        except UnreadableImage as error:
            if not skip:
                raise
            return error

    images = torch.empty((len(dataset) if keep else 0, *shape), dtype=torch.uint8)
    readable = 0
    left_out: dict[str, str] = {}
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        # in blocks, so that an error ends the work soon and few decoded images wait
        for start in range(0, len(dataset), 1024):
            block = range(start, min(start + 1024, len(dataset)))
            for index, outcome in zip(block, pool.map(attempt, block), strict=True):
                if isinstance(outcome, UnreadableImage):
                    left_out[dataset.names[index]] = str(outcome)
                    continue
                if keep:
                    images[readable] = outcome
                readable += 1
    return images[:readable] if keep else None, left_out
