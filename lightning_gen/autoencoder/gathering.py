"""The rows of all processes in one batch, through which gradients pass.

torch.distributed is asked at every call, for a module is built before there are processes to speak of. Row i of the
joined batch lies on process i mod world, as data modules deal images.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_gen.metrics.distributed import world


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
