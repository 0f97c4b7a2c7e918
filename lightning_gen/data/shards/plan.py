"""What is to be written, known before anything is: which images go into which shard."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_gen.data.base import SPLITS
from lightning_gen.data.datasets import Split
from lightning_gen.data.decoding import UnreadableImage
from lightning_gen.data.folder import ImageFolderDataModule
from lightning_gen.data.shards.encoding import Encoder
from lightning_gen.data.shards.index import FORMAT, VERSION
from lightning_gen.seeding import mix

# images that are encoded to learn how large they get
_SAMPLED = 64
# a member of a tar has a header of 512 bytes, and is filled up to a multiple of that
_MEMBER = 768


@dataclass(frozen=True)
class Plan:
    """What goes where.

    Attributes:
        shards: names of the image files, in order, of each shard of each split.
        stand_ins: the split whose images are those of another, since it would be empty.
        made: how the images are made.
        digest: SHA-256 of all that decides what is in the shards.
    """

    shards: dict[Split, dict[str, list[str]]]
    stand_ins: dict[Split, Split]
    made: dict[str, Any]
    digest: str


def plan_shards(encoder: Encoder, shard_mb: float) -> Plan:
    """Deal images to shards of equal number, those of training in random order.

    Args:
        encoder: of the images.
        shard_mb: about how large a shard gets, in units of 1e6 bytes.
    """
    source = encoder.source
    splits = source.arrangement.splits
    shards: dict[Split, dict[str, list[str]]] = {}
    stand_ins: dict[Split, Split] = {}
    per_shard = max(1, int(shard_mb * 1e6 / _stored_bytes(encoder, splits["train"])))
    for split in SPLITS.values():
        names = splits[split]
        if split == "train":
            generator = torch.Generator().manual_seed(mix(source.seed))
            names = [names[place] for place in torch.randperm(len(names), generator=generator).tolist()]
        elif names is splits["train"]:
            stand_ins[split] = "train"
            continue
        count = -(-len(names) // per_shard)
        bounds = [len(names) * number // count for number in range(count + 1)]
        shards[split] = {
            f"{split}-{number:05}.tar": names[bounds[number] : bounds[number + 1]] for number in range(count)
        }
    made: dict[str, Any] = {
        "source": source.name,
        "size": source.size,
        "resize": source.resize,
        "filter": source.filter,
    }
    made |= {"seed": source.seed, "shard_mb": shard_mb, "jpeg_quality": encoder.jpeg_quality}
    return Plan(shards, stand_ins, made, _digest(source, shards, made))


def labels_of(source: ImageFolderDataModule, names: Sequence[str]) -> list[int]:
    """Return the labels of files, -1 where there are none."""
    return [source.arrangement.label_of.get(name, -1) for name in names]


def _stored_bytes(encoder: Encoder, names: Sequence[str]) -> float:
    """Return how many bytes an image takes in a tar, from some of them."""
    taken = []
    for name in names[:: -(-len(names) // _SAMPLED)]:
        try:
            taken.append(len(encoder(name).content))
        except UnreadableImage:
            continue  # told where it is written
    members = 1 if encoder.source.num_classes is None else 2
    return sum(taken) / max(1, len(taken)) + members * _MEMBER


def _digest(source: ImageFolderDataModule, shards: dict[Split, dict[str, list[str]]], made: dict[str, Any]) -> str:
    decided = [FORMAT, VERSION, made, source.shape, source.class_names, source.on_error]
    digest = hashlib.sha256(json.dumps(decided).encode())
    for files in shards.values():
        for file, names in files.items():
            sizes = [source.files.size(name) for name in names]
            digest.update(json.dumps([file, names, sizes, labels_of(source, names)]).encode())
    return digest.hexdigest()
