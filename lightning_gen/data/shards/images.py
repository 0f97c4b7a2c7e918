"""The images of shards as a data set: read by their place in a tar, and held against their checksum."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gen.data.datasets import Batch, ImageDataset
from lightning_gen.data.decoding import Decoder, UnreadableImage
from lightning_gen.data.shards.copies import Copies
from lightning_gen.data.shards.index import CRC, LABEL, LENGTH, OFFSET, Shard, Table
from lightning_gen.data.shards.storage import Range, Storage
from lightning_gen.errors import MissingData

# images that are read at a time where all are checked
_CHECKED = 256


class ShardImages(ImageDataset):
    """Images decoded from shards each time they are asked for; image i is the i-th of all, shard after shard.

    Args:
        storage: where the shards are.
        shards: in order.
        tables: of each of them.
        decoder: makes an image of what is stored.
        labeled: whether the images have labels.
        copies: read instead of the storage where it is given.
    """

    def __init__(
        self,
        storage: Storage,
        shards: Sequence[Shard],
        tables: Sequence[Table],
        decoder: Decoder,
        labeled: bool,
        copies: Copies | None = None,
    ) -> None:
        self.storage, self.shards, self.decoder, self.copies = storage, list(shards), decoder, copies
        self.table = np.concatenate(tables, axis=1)
        self.starts = np.cumsum([0] + [shard.images for shard in shards])
        self.labels = torch.from_numpy(self.table[LABEL].copy()) if labeled else None

    def __len__(self) -> int:
        return int(self.starts[-1])

    def stored(self, indices: Tensor) -> list[bytes]:
        """Return what is stored of these images, int64 `(B,)`, in this order, unchecked.

        Raises:
            MissingData: where a shard is no longer there.
        """
        rows = indices.numpy()
        # in the order in which they lie there
        ordered = np.argsort(rows, kind="stable")
        numbers, (offsets, lengths) = self._numbers(rows[ordered]), self.table[OFFSET : LENGTH + 1, rows[ordered]]
        files = [self.shards[number].file for number in numbers.tolist()]
        wanted = [Range(*part) for part in zip(files, offsets.tolist(), lengths.tolist(), strict=True)]
        try:
            found = self.copies.ranges(wanted) if self.copies is not None else self.storage.ranges(wanted)
        except FileNotFoundError as error:
            raise MissingData(
                f"A shard in {self.storage.path} is no longer there ({error}). Bring it back, or leave missing shards"
                " out with on_error='skip' (--data.on_error skip)."
            ) from error
        in_order: list[bytes] = [b""] * len(rows)
        for place, content in zip(ordered.tolist(), found, strict=True):
            in_order[place] = content
        return in_order

    def batch(self, indices: Tensor) -> Batch:
        """Decode the images of these indices, int64 `(B,)`, in this order.

        Raises:
            UnreadableImage: where one is not what was written; names the shard.
            MissingData: where a shard is no longer there.
        """
        rows = indices.numpy()
        sums, numbers = self.table[CRC, rows].tolist(), self._numbers(rows)
        places = (rows - self.starts[numbers]).tolist()
        parts = zip(self.stored(indices), sums, numbers.tolist(), places, strict=True)
        batch = {"image": torch.stack([self._decoded(*part) for part in parts])}
        if self.labels is not None:
            batch["label"] = self.labels.index_select(0, indices)
        return batch

    def damaged(self, number: int) -> int:
        """Read a shard and count the images in it that are not what was written; all of them where that fails."""
        first, end = int(self.starts[number]), int(self.starts[number + 1])
        wrong = 0
        for start in range(first, end, _CHECKED):
            rows = torch.arange(start, min(start + _CHECKED, end))
            sums = self.table[CRC, rows.numpy()].tolist()
            try:
                stored = self.stored(rows)
            except OSError:
                return end - first
            wrong += sum(zlib.crc32(content) != known for content, known in zip(stored, sums, strict=True))
        return wrong

    def _numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of the shard of each image."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def _decoded(self, content: bytes, known: int, number: int, place: int) -> Tensor:
        name = f"image {place} of the shard {self.shards[number].file} in {self.storage.path}"
        if zlib.crc32(content) != known:
            raise UnreadableImage(
                f"{name} is not what was written: the file is damaged. Remove it and repeat the `lightning-gen shards`"
                " command that wrote it, which writes what is missing; or leave damaged shards out with on_error='skip'"
                " and check='content' (--data.on_error skip --data.check content)."
            )
        return self.decoder(content, name)
