"""Writing shards from a folder or a zip archive of images, so that a kill leaves no half shard taken for whole.

The plan is written first. Each shard is then written, read back for its table, and only then given its name; its
table follows it, and the index when all are there. The same command again writes what is missing, and nothing else:
after a kill, or after a damaged shard was removed. The same images and options give the same bytes.
"""

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lightning_gen.data.datasets import Split
from lightning_gen.data.decoding import UnreadableImage
from lightning_gen.data.folder import ImageFolderDataModule
from lightning_gen.data.shards.encoding import Encoder
from lightning_gen.data.shards.index import (
    INDEX,
    LABEL,
    LENGTH,
    OFFSET,
    PLAN,
    Index,
    Shard,
    Table,
    read_table,
    table_bytes,
    table_file,
)
from lightning_gen.data.shards.plan import Plan, labels_of, plan_shards
from lightning_gen.data.shards.storage import Storage
from lightning_gen.errors import MissingExtra, RunError

# a tar is filled up to a multiple of this
_RECORD = 10240
_SHOWN = 10

Progress = Callable[[str, int, int], None]


class ShardWriter:
    """Writes the images of a folder or archive as shards.

    Args:
        source: the images; its options say how they become images of one size, and what is done about files that
            cannot be read.
        out: folder for the shards, or its address for fsspec.
        shard_mb: about how large a shard gets, in units of 1e6 bytes.
        jpeg_quality: 1 to 100: images that are resized are stored as JPEG; None: as PNG, which loses nothing.
        storage_options: given to fsspec's file system.

    Raises:
        MissingExtra: where a package is not installed; names it.
        ValueError: where a number is out of range.
    """

    def __init__(
        self,
        source: ImageFolderDataModule,
        out: str,
        shard_mb: float = 64.0,
        jpeg_quality: int | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        if shard_mb <= 0:
            raise ValueError(f"shard_mb is more than 0, given was {shard_mb}.")
        self.source, self.shard_mb = source, shard_mb
        self.encoder = Encoder(source, jpeg_quality)
        self.storage = Storage(out, storage_options)
        self._tar_writer = _tar_writer()

    @cached_property
    def plan(self) -> Plan:
        """What is to be written."""
        return plan_shards(self.encoder, self.shard_mb)

    def write(self, progress: Progress | None = None) -> Index:
        """Write what is missing; return the index.

        Args:
            progress: told the name of each shard that is there, how many are, and of how many.

        Raises:
            RunError: where the folder holds something else.
            UnreadableImage: at an image that cannot be read, unless the source skips these.
            UnexpectedImage: at an image that is unlike the others.
        """
        listed = self._begin()
        total, done = sum(map(len, self.plan.shards.values())), 0
        splits: dict[Split, list[Shard]] = {}
        counts: dict[Split, list[int]] = {}
        left_out: dict[Split, int] = {}
        for split, files in self.plan.shards.items():
            per_class = np.zeros(self.source.num_classes or 0, dtype=np.int64)
            shards, first = [], 0
            for file, names in files.items():
                shard, table = self._there(file, listed) or self._write(file, names, first)
                shards.append(shard)
                first, done = first + len(names), done + 1
                if len(per_class):
                    per_class += np.bincount(table[LABEL], minlength=len(per_class))
                if progress is not None:
                    progress(file, done, total)
            splits[split], counts[split] = [shard for shard in shards if shard.images], per_class.tolist()
            if not splits[split]:
                raise UnreadableImage(f"None of the {first} {split} images in {self.source.path} can be read.")
            left_out[split] = first - sum(shard.images for shard in shards)
        return self._end(splits, counts, left_out)

    def _begin(self) -> dict[str, int | None]:
        """Note what is to be written, or go on with it; return what is there.

        Raises:
            RunError: where something else is in the folder.
        """
        listed = self.storage.sizes()
        for name in listed:
            if name.startswith(".") and name.endswith(".partial"):  # of a process that was killed
                self.storage.remove(name)
        if PLAN in listed:
            (content,) = self.storage.read(PLAN)
            if f'"digest": "{self.plan.digest}"'.encode() in content:
                return listed
            raise RunError(
                f"{self.storage.path} holds shards of other images, or with other options: give another folder for"
                " these, or repeat the command that wrote those."
            )
        if any(not name.startswith(".") for name in listed):
            raise RunError(f"{self.storage.path} is not empty: give a new folder for the shards.")
        self._put(PLAN, (json.dumps({"digest": self.plan.digest, **self.plan.made}, indent=1) + "\n").encode())
        return {}

    def _end(
        self, splits: dict[Split, list[Shard]], counts: dict[Split, list[int]], left_out: dict[Split, int]
    ) -> Index:
        source, plan = self.source, self.plan
        index = Index(
            source.name, source.shape, source.class_names, splits, counts, plan.stand_ins, left_out, plan.made
        )
        self._put(INDEX, index.to_json().encode())
        return index

    # ---- one shard

    def _there(self, file: str, listed: dict[str, int | None]) -> tuple[Shard, Table] | None:
        """Return a shard that has been written before, with its table; None where one of them is not whole."""
        size = listed.get(file)
        if size is None or table_file(file) not in listed:
            return None
        (content,) = self.storage.read(table_file(file))
        digest = hashlib.sha256(content).hexdigest()
        try:
            table = read_table(content, Shard(file, size, 0, digest))
        except (ValueError, EOFError):  # storage that shows a file before all of it has come
            return None
        end = int((table[OFFSET] + table[LENGTH]).max(initial=0))
        if size % _RECORD or size < end:  # cut short by another hand
            return None
        return Shard(file, size, table.shape[1], digest), table

    def _write(self, file: str, names: Sequence[str], first: int) -> tuple[Shard, Table]:
        """Write a shard and its table; `first` is the number of its first image among those of the split."""
        with self.storage.written(file) as partial:
            table = _table_of(partial, labels_of(self.source, self._write_tar(partial, file, names, first)))
            size = partial.stat().st_size
        content = table_bytes(table)
        self._put(table_file(file), content)
        return Shard(file, size, table.shape[1], hashlib.sha256(content).hexdigest()), table

    def _write_tar(self, path: Path, file: str, names: Sequence[str], first: int) -> list[str]:
        """Write the images of a shard; return the names of those that could be read."""
        kept: list[str] = []
        reasons: list[str] = []
        # without the time of writing: the same images are the same bytes
        with path.open("wb") as stream, self._tar_writer(stream, encoder=False, mtime=0) as tar:
            for number, (name, stored) in enumerate(self.encoder.each(names), first):
                if isinstance(stored, UnreadableImage):
                    reasons.append(str(stored))
                    continue
                sample = {"__key__": f"{number:09}", stored.kind: stored.content}
                if self.source.num_classes is not None:
                    sample["cls"] = str(self.source.arrangement.label_of[name]).encode()
                tar.write(sample)
                kept.append(name)
        if reasons:
            shown = "\n".join(reasons[:_SHOWN])
            more = f"\n... and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
            rank_zero_warn(f"Left out {len(reasons)} of the {len(names)} images of {file}:\n{shown}{more}")
        return kept

    def _put(self, name: str, content: bytes) -> None:
        with self.storage.written(name) as partial:
            partial.write_bytes(content)


def _table_of(path: Path, labels: Sequence[int]) -> Table:
    """Read a tar back: where each image lies in it, and its checksum.

    Raises:
        RunError: where it does not hold as many images as were written.
    """
    rows = []
    with tarfile.open(path) as tar, path.open("rb") as file:
        for member in tar:
            if not member.name.endswith(".cls"):
                file.seek(member.offset_data)
                rows.append((member.offset_data, member.size, zlib.crc32(file.read(member.size))))
    if len(rows) != len(labels):
        raise RunError(f"{path} holds {len(rows)} images, {len(labels)} were written: is the disk sound?")
    table = np.array([(*row, label) for row, label in zip(rows, labels, strict=True)], dtype=np.int64)
    return np.ascontiguousarray(table.reshape(-1, 4).T)


def _tar_writer() -> Any:
    try:
        from webdataset import TarWriter
    except ImportError as error:
        raise MissingExtra(
            "Writing shards needs the package webdataset (reading does not): pip install 'lightning_gen[shards]'"
        ) from error
    return TarWriter
