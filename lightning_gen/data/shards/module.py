"""Shards as a data module.

`lightning-gen shards FOLDER_OR_ZIP OUT` writes them, in the format of WebDataset (tar files), which other readers
of it can read too. They are read here by the places of the images in the tar files, and not by the pipelines of
an engine: those of WebDataset and of litdata deal out whole shards to ranks and to worker processes, so that the
order of an epoch depends on how many of these there are, and where a run was in it on all of their states. Here
it is a function of (seed, epoch), as everywhere in this package; see `order.py`.

References:
    High Performance I/O For Large Scale Deep Learning (shards, and their shuffling)
    https://arxiv.org/abs/2001.01858
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_gen.data.base import Description, ImageDataModule
from lightning_gen.data.datasets import BatchView, ImageDataset, Split
from lightning_gen.data.decoding import Decoder
from lightning_gen.data.loading import EpochSampler
from lightning_gen.data.shards.copies import Copies
from lightning_gen.data.shards.images import ShardImages
from lightning_gen.data.shards.index import DamagedShard, Index, Shard, Table, read_index, read_table
from lightning_gen.data.shards.order import BlockSampler
from lightning_gen.data.shards.storage import Storage
from lightning_gen.errors import MissingData, did_you_mean

logger = logging.getLogger(__name__)

_SHOWN = 10


class ShardsDataModule(ImageDataModule):
    """Images in shards, for data that are too large, too many files or too far away for a plain folder.

    Shape, classes and counts come from a small index, before any image is read. Training images are shuffled
    `window` shards at a time, the shards anew in each epoch; the order depends on the arguments `seed`, `window`
    and `lanes` and on the shards, and neither on workers nor on ranks. An image that is not what was written is
    an error that names its shard.

    Args:
        path: folder with the shards, or its address for fsspec (`s3://bucket/folder`, ...).
        window: shards that are shuffled together. More are a better shuffle, and more to keep at hand.
        lanes: parts that an epoch interleaves, each with its share of the window. Several ranks read different shards
            where their number divides it.
        on_error: "raise" stops at a shard that is missing or not as long as it was; "skip" leaves it out, and tells
            of it in a warning, in the log and in `skipped`.
        check: what is looked at before training: "size", that the shards are there and as long as they were;
            "content", every byte of their images, which takes as long as reading them.
        cache: folder on a disk of this machine for copies of whole shards; without it, byte ranges are read where the
            shards are. Two windows of shards should fit.
        cache_gb: how large the copies may get, in units of 1e9 bytes.
        storage_options: given to fsspec's file system (`anon`, `endpoint_url`, ...). Keys belong in the environment,
            not here: this is written to config.yaml.
        name: what protocols call the data; by default as the shards say.
        batch_size: images a batch, over all ranks.
        num_workers: processes that read and decode.
        flip: whether training images are mirrored at random.
        seed: of the order and the flips.
        n_predict: number of samples that `Trainer.predict` draws.

    Raises:
        MissingData: where there are no shards.
        MissingExtra: where the package of the path's protocol is not installed; names it.
        ValueError: where an argument or the index is wrong.
    """

    def __init__(
        self,
        path: str,
        window: int = 16,
        lanes: int = 8,
        on_error: Literal["raise", "skip"] = "raise",
        check: Literal["size", "content"] = "size",
        cache: str | None = None,
        cache_gb: float = 100.0,
        storage_options: dict[str, Any] | None = None,
        name: str | None = None,
        batch_size: int = 64,
        num_workers: int = 2,
        flip: bool = True,
        seed: int = 0,
        n_predict: int = 64,
    ) -> None:
        super().__init__(batch_size, num_workers, flip, seed, n_predict)
        for option, given, allowed in (
            ("on_error", on_error, ("raise", "skip")),
            ("check", check, ("size", "content")),
        ):
            if given not in allowed:
                raise ValueError(
                    f"{option} is {' or '.join(allowed)}; given was {given!r}.{did_you_mean(str(given), allowed)}"
                )
        if window < 1 or lanes < 1 or cache_gb <= 0:
            raise ValueError(
                "window and lanes are 1 or more and cache_gb more than 0, given were"
                f" window={window}, lanes={lanes}, cache_gb={cache_gb}."
            )
        self.path, self.window, self.lanes, self.on_error, self.check = str(path), window, lanes, on_error, check
        self.cache = None if cache is None else Path(cache).expanduser()
        self.cache_gb = cache_gb
        self.storage = Storage(self.path, storage_options)
        self._name = name
        # why each shard that is left out is left out, by name, of the splits loaded so far
        self.skipped: dict[str, str] = {}

    # ---- what is known before anything is read

    @cached_property
    def index(self) -> Index:
        """What stands beside the shards, read when first needed."""
        return read_index(self.storage)

    @property
    def name(self) -> str:  # type: ignore[override]
        """What protocols call the data."""
        return self._name or self.index.name

    def _describe(self) -> Description:
        names = self.index.class_names
        return Description(self.index.shape, None if names is None else len(names), names)

    @property
    def class_counts(self) -> Tensor | None:
        """Images of each class in the training split, int64 `(K,)`; None where there are no labels.

        With on_error="skip", those of the shards that can be read: they are looked at first.
        """
        if self.on_error == "skip" or self.num_classes is None:
            return super().class_counts
        return torch.tensor(self.index.class_counts["train"])

    # ---- loading

    def _load(self, split: Split) -> ImageDataset:
        stand_in = self.index.stand_ins.get(split)
        if stand_in is not None:
            rank_zero_warn(
                f"The shards in {self.path} have nothing for {split}: the images of {stand_in} are used there too, so"
                " no score of them says anything about new images."
            )
            return self.split(stand_in)
        shards = self.index.splits.get(split, [])
        listed = self.storage.sizes()
        wrong = {shard.file: why for shard in shards if (why := _unlike(shard, listed)) is not None}
        present = [shard for shard in shards if shard.file not in wrong]
        tables: dict[str, Table] = {}
        contents = self.storage.read(*(shard.table_file for shard in present))
        for shard, content in zip(present, contents, strict=True):
            try:
                tables[shard.file] = read_table(content, shard)
            except DamagedShard as error:
                wrong[shard.file] = str(error)
        if self.check == "content":
            readable = [shard for shard in present if shard.file not in wrong]
            wrong |= self._damaged(self._images(readable, tables)) if readable else {}
        if wrong:
            self._report(split, wrong, shards)
        return self._images([shard for shard in shards if shard.file not in wrong], tables, self.cache)

    def _images(self, shards: Sequence[Shard], tables: dict[str, Table], cache: Path | None = None) -> ShardImages:
        channels, height, width = self.shape
        copies = None if cache is None else Copies(self.storage, shards, cache, int(self.cache_gb * 1e9))
        decoder = Decoder(channels, None, expected=(height, width))
        ordered = [tables[shard.file] for shard in shards]
        return ShardImages(self.storage, shards, ordered, decoder, self.num_classes is not None, copies)

    def _damaged(self, images: ShardImages) -> dict[str, str]:
        """Read all shards, on several threads; say of each that is damaged how much of it is."""
        with ThreadPoolExecutor(4) as pool:
            counts = list(pool.map(images.damaged, range(len(images.shards))))
        return {
            shard.file: f"{count} of its {shard.images} images are not what was written"
            for shard, count in zip(images.shards, counts, strict=True)
            if count
        }

    def _report(self, split: Split, wrong: dict[str, str], shards: Sequence[Shard]) -> None:
        """Stop at shards that cannot be read, or tell which are left out.

        Raises:
            DamagedShard: where they are not to be left out.
            MissingData: where none is left.
        """
        lines = [f"{name}: {why}" for name, why in wrong.items()]
        shown = "\n".join(lines[:_SHOWN]) + (f"\n... and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")
        lost = sum(shard.images for shard in shards if shard.file in wrong)
        what = f"{len(wrong)} of {len(shards)} {split} shards in {self.path} cannot be read, with {lost} images"
        if self.on_error == "raise":
            raise DamagedShard(
                f"{what}:\n{shown}\nBring them back, or remove them and repeat the `lightning-gen shards` command that"
                " wrote them; or leave them out with on_error='skip' (--data.on_error skip)."
            )
        if len(wrong) == len(shards):
            raise MissingData(f"{what}; none is left:\n{shown}")
        self.skipped |= wrong
        for line in lines:
            logger.info("left out: %s", line)
        rank_zero_warn(f"Left out: {what}; all are listed in the attribute `skipped`:\n{shown}")

    def _fingerprint(self, split: Split) -> str:
        """Hash the shape and the tables of the shards that are used, which hold the checksums of all images."""
        if self.on_error == "skip":
            self.split(split)
        shards = self.index.splits.get(self.index.stand_ins.get(split, split), [])
        used = [shard.table for shard in shards if shard.file not in self.skipped]
        return hashlib.sha256(json.dumps([self.shape, used]).encode()).hexdigest()

    def _train_sampler(self, view: BatchView) -> EpochSampler:
        images = cast(ShardImages, view.dataset)
        sizes = [shard.images for shard in images.shards]
        announce = None
        if images.copies is not None:
            announce = partial(_prefetch, images.copies, [shard.file for shard in images.shards])
        return BlockSampler(view, sizes, self.window, self.lanes, **self._ranks(), seed=self.seed, announce=announce)


def _prefetch(copies: Copies, files: Sequence[str], numbers: list[int]) -> None:
    copies.prefetch(files[number] for number in numbers)


def _unlike(shard: Shard, listed: dict[str, int | None]) -> str | None:
    """Say in which way a shard is not as it was written, as far as a list of files shows."""
    if shard.file not in listed:
        return "missing"
    if shard.table_file not in listed:
        return f"its table {shard.table_file} is missing"
    if listed[shard.file] not in (shard.bytes, None):
        return f"has {listed[shard.file]} bytes, {shard.bytes} were written"
    return None
