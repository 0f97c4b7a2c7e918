"""Whether any process of a run wants something, known to all of them at the same iteration.

The question goes round while the iteration is computed, between the processors and not the devices, so that neither
waits for the other.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class Agreement:
    """Asked by all processes at the start of an iteration, answered at its end.

    Args:
        trainer: whose processes these are; all of them make one, at the same time.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._group: Any = torch.distributed.new_group(backend="gloo") if trainer.world_size > 1 else None
        self._asked: Tensor | None = None
        self._work: torch.distributed.Work | None = None

    def ask(self, wanted: int) -> None:
        """Say what this process wants: 0 for nothing."""
        self._asked = torch.tensor([wanted])
        if self._group is not None:
            self._work = torch.distributed.all_reduce(
                self._asked, torch.distributed.ReduceOp.MAX, self._group, async_op=True
            )

    def answer(self) -> int:
        """Return the largest of what was wanted when it was asked; 0 where it was not asked."""
        if self._asked is None:
            return 0
        if self._work is not None:
            self._work.wait()
        wanted = int(self._asked)
        self._asked = self._work = None
        return wanted


def of_every(holds: bool, device: torch.device) -> bool:
    """Return whether something holds on every process; all of them call it."""
    if not torch.distributed.is_initialized():
        return holds
    said = torch.tensor(int(holds), device=device)
    torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MIN)
    return bool(said)


def mean_of_all(values: Mapping[str, Tensor | float], device: torch.device) -> dict[str, Tensor | float]:
    """Return the means of scalars over all processes, which have the same names; one exchange for all of them.

    With as many samples on each process they are what one process would have for all samples.
    """
    kind = torch.float32 if device.type == "mps" else torch.float64
    numbers = torch.stack([torch.as_tensor(value, dtype=kind, device=device) for value in values.values()])
    torch.distributed.all_reduce(numbers)
    numbers /= torch.distributed.get_world_size()
    return dict(zip(values, numbers.unbind(), strict=True))
