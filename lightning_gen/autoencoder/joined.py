"""Sums, means and rows of the joined batch of all processes.

torch.distributed is asked at every call: a module is built before there are processes to speak of, and what it then
believed it would believe to the end. Sample i of the joined batch lies on process i mod world.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gen.autoencoder.hashing import hashed
from lightning_gen.metrics.distributed import world


def summed(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place, and return it; all of them have to call."""
    if world()[1] > 1:
        dist.all_reduce(values)
    return values


def joined_mean(rows: Tensor) -> Tensor:
    """Return the mean over the rows `(n, ...)` of all processes, which all have to call.

    The gradient is that of this process's rows, times the number of processes: where gradients are then averaged
    over processes, as DDP does, the result is the gradient of the joined batch.
    """
    size = world()[1]
    if size == 1:
        return rows.mean(0)
    own = rows.sum(0)
    total = summed(torch.cat([own.detach().flatten(), own.new_full((1,), len(rows))]))
    count = total[-1]
    mean = (total[:-1] / count).view_as(own)
    own = own * (size / count)
    return mean + (own - own.detach())


class _Gather(torch.autograd.Function):
    """Rows `(n, ...)` of each process to `(n world, ...)`; all of them have to call, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world()[1])]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        rank, size = world()
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[rank::size].contiguous()


def gathered(rows: Tensor) -> Tensor:
    """Return the rows of the joined batch; every process calls it with as many rows `(n, ...)`.

    The gradient of a row is that of the losses of all processes, summed: where gradients are then averaged over
    processes, as DDP does, the result is the gradient of the mean of these losses.
    """
    if world()[1] == 1:
        return rows
    joined: Tensor = _Gather.apply(rows)  # type: ignore[no-untyped-call]
    return joined


def permutation(n: int, salt: Tensor) -> Tensor:
    """Return a permutation of 0 ... n - 1, int64 `(n,)`, that is a function of `n` and of `salt` alone.

    The numbers 0 ... n - 1 are hashed and sorted, on the device: the salt, a count in device memory, is never waited
    for, and processes agree without a word.

    Args:
        n: number of entries.
        salt: int64 scalar.
    """
    return torch.argsort(hashed(torch.arange(n, device=salt.device) + hashed(salt)), stable=True)
