"""The training images of a data module, read one by one, for what is learned of them before or after training."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_gen.images import from_uint8


def training_split(datamodule: Any, needed: str) -> Sequence[Any]:
    """Return the training images of a data module.

    Args:
        datamodule: of the run; None where there is none.
        needed: what needs them, and what to do without, as a message says it.

    Raises:
        MisconfigurationException: where they cannot be read one by one.
    """
    split = getattr(datamodule, "split", None)
    if split is None:
        raise MisconfigurationException(
            f"{needed} This takes a data module of lightning_gen.data, or one with split('train')."
        )
    images: Sequence[Any] = split("train")
    return images


def evenly(images: Sequence[Any], count: int, batch: int) -> Iterator[tuple[list[int], Tensor]]:
    """Give so many of the images, evenly from all of them, for a folder may be sorted.

    Args:
        images: dicts with `image`, bytes `(C, H, W)`.
        count: how many, at most.
        batch: how many at a time.

    Yields:
        Their numbers, and the images in [-1, 1], `(B, C, H, W)`.
    """
    count = min(count, len(images))
    for part in torch.split((torch.arange(count) * len(images)) // max(count, 1), batch):
        rows = [int(row) for row in part]
        yield rows, from_uint8(torch.stack([images[row]["image"] for row in rows]))
