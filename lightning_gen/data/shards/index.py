"""What lies beside shards: a small index of them all, and of each a table of its images.

    index.json          shape, classes, and of every split its shards, with the hash of their tables
    train-00000.tar     images and labels, as WebDataset has them: 000000000.jpg, 000000000.cls, ...
    plan.json           what was to be written: the command that was cut off goes on by it
    train-00000.npy     int64 (4, n): offset and length of each image in the tar, its CRC-32, its label (-1: none)

The index is read to build networks; tables are read where images are.
"""

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gen.data.datasets import Split
from lightning_gen.data.shards.storage import Storage
from lightning_gen.errors import MissingData, did_you_mean

INDEX, PLAN = "index.json", "plan.json"
FORMAT, VERSION = "lightning_gen.shards", 1
OFFSET, LENGTH, CRC, LABEL = range(4)

Table = NDArray[np.int64]


class DamagedShard(ValueError):
    """A shard, or what lies beside it, is not what was written."""


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        file: its name.
        bytes: its size.
        images: how many it holds.
        table: SHA-256 of its table.
    """

    file: str
    bytes: int
    images: int
    table: str

    @property
    def table_file(self) -> str:
        """Name of the table."""
        return table_file(self.file)


@dataclass(frozen=True)
class Index:
    """What is known of shards before they are read.

    Attributes:
        name: of the data.
        shape: (C, H, W) of every image.
        class_names: None where the images have no labels.
        splits: the shards of each.
        class_counts: images of each class in each split; empty where the images have no labels.
        stand_ins: the split whose images are those of another, which would be empty.
        left_out: images of each split that could not be read when the shards were written.
        made: how the images were made, for whoever wants to know.
    """

    name: str
    shape: tuple[int, int, int]
    class_names: list[str] | None
    splits: dict[Split, list[Shard]]
    class_counts: dict[Split, list[int]]
    stand_ins: dict[Split, Split] = field(default_factory=dict)
    left_out: dict[Split, int] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the file's content."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"


def table_file(tar: str) -> str:
    """Name the table of a tar."""
    return tar.removesuffix(".tar") + ".npy"


def read_index(storage: Storage) -> Index:
    """Read the index of shards.

    Raises:
        MissingData: where there is none.
        ValueError: where it is another file of that name, or of a newer version.
    """
    try:
        (content,) = storage.read(INDEX)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingData(_no_index(storage)) from None
    what = f"{INDEX} in {storage.path}"
    try:
        fields = json.loads(content)
        if fields.pop("format") != FORMAT:
            raise ValueError("another format")
        version = fields.pop("version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{what} is no index of shards ({error}). `lightning-gen shards FOLDER_OR_ZIP OUT` writes one, with"
            " the shards."
        ) from error
    if version > VERSION:
        raise ValueError(
            f"{what} is of version {version}, this lightning_gen reads up to {VERSION}: pip install -U lightning_gen"
        )
    try:
        fields["splits"] = {split: [Shard(**shard) for shard in shards] for split, shards in fields["splits"].items()}
        channels, height, width = fields.pop("shape")
        return Index(shape=(channels, height, width), **fields)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{what} is incomplete ({error}): write the shards again.") from error


def _no_index(storage: Storage) -> str:
    found = storage.sizes()
    path = storage.path
    if not found:
        close = ""
        if storage.folder is not None and storage.folder.absolute().parent.is_dir():
            close = did_you_mean(
                storage.folder.name, [entry.name for entry in storage.folder.absolute().parent.iterdir()]
            )
        return f"There are no shards in {path}: it does not exist, or holds no files.{close}"
    if PLAN in found:
        return f"The shards in {path} are not all written yet: the same `lightning-gen shards` command goes on there."
    return (
        f"There is no {INDEX} in {path}. Shards are written, with their index, by `lightning-gen shards"
        " FOLDER_OR_ZIP OUT`; images in a plain folder are read by ImageFolderDataModule."
    )


def table_bytes(table: Table) -> bytes:
    """Return the file's content of a table."""
    file = io.BytesIO()
    np.save(file, table, allow_pickle=False)
    return file.getvalue()


def read_table(content: bytes, shard: Shard) -> Table:
    """Read the table of a shard.

    Raises:
        DamagedShard: where it is not the one that was written.
    """
    if hashlib.sha256(content).hexdigest() != shard.table:
        raise DamagedShard(f"the table {shard.table_file} is not the one that was written with the shard")
    table: Table = np.load(io.BytesIO(content), allow_pickle=False)
    return table
