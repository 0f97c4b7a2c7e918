"""The few collective operations evaluation needs; with one process each is what it says without communication.

Work is dealt in fixed batches: batch b holds the indices b B ... b B + B - 1 and goes to rank b mod world. So every
image sees the same batch, and the kernels the same shapes, on any number of ranks.
"""

from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def world() -> tuple[int, int]:
    """Rank of this process and number of processes: (0, 1) where torch.distributed is not initialized."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def own_batches(total: int, batch_size: int) -> list[tuple[int, int]]:
    """Batches of this rank as (first index, size); the last of all may be smaller, none is padded."""
    rank, size = world()
    return [
        (first, min(batch_size, total - first))
        for number, first in enumerate(range(0, total, batch_size))
        if number % size == rank
    ]


def broadcast(value: T | None) -> T:
    """Give every rank what rank 0 holds; plain Python values."""
    if world()[1] == 1:
        return value  # type: ignore[return-value]
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]  # type: ignore[return-value]


def total(*counts: int) -> tuple[int, ...]:
    """Sum integers over the ranks."""
    if world()[1] == 1:
        return counts
    summed = torch.tensor(counts, dtype=torch.int64, device=_device())
    distributed.all_reduce(summed)
    return tuple(int(count) for count in summed)


def raise_together(error: Exception | None) -> None:
    """Raise on every rank what any rank met, so that none waits for one that is gone.

    Args:
        error: what this rank met, or None.

    Raises:
        RuntimeError: another rank failed.
    """
    rank, size = world()
    if size > 1:
        found: list[str | None] = [None] * size
        distributed.all_gather_object(found, None if error is None else f"{type(error).__name__}: {error}")
        others = [f"rank {index}: {text}" for index, text in enumerate(found) if text is not None and index != rank]
        if error is None and others:
            raise RuntimeError(f"Evaluation failed on another process ({'; '.join(others)}).")
    if error is not None:
        raise error


def gather_rows(rows: list[Tensor], total_rows: int, batch_size: int) -> Tensor | None:
    """Bring the rows of all batches to rank 0, in the order of their indices.

    Args:
        rows: (n, d) one for each of this rank's batches, on the CPU, as `own_batches` dealt them.
        total_rows: number of rows over all ranks.
        batch_size: rows of a full batch.

    Returns:
        (total_rows, d) on rank 0, None elsewhere.
    """
    rank, size = world()
    if size == 1:
        return torch.cat(rows)
    width, dtype = _agree(rows)
    batches = -(-total_rows // batch_size)
    height = -(-batches // size) * batch_size
    # ranks may hold a batch less, or a short one: same shapes for the collective, cut off below
    padded = torch.zeros(height, width, dtype=dtype)
    if rows:
        mine = torch.cat(rows)
        padded[: len(mine)] = mine
    padded = padded.to(_device())
    parts = [torch.empty_like(padded) for _ in range(size)] if rank == 0 else None
    distributed.gather(padded, parts, dst=0)
    if parts is None:
        return None
    dealt = torch.stack([part.cpu().view(-1, batch_size, width) for part in parts], dim=1)
    return dealt.reshape(-1, width)[:total_rows]


def _agree(rows: list[Tensor]) -> tuple[int, torch.dtype]:
    """Width and type of the rows; rank 0 has the first batch, so it knows."""
    return broadcast((rows[0].shape[1], rows[0].dtype) if rows else None)


def _device() -> torch.device:
    """Where tensors must lie for the collectives of the current backend."""
    return (
        torch.device("cuda", torch.cuda.current_device())
        if distributed.get_backend() == "nccl"
        else torch.device("cpu")
    )
