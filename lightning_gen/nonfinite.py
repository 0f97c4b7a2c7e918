"""A loss that is NaN or infinite: found before it moves a weight."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from lightning_gen.errors import RunError

NonFinitePolicy = Literal["stop", "skip"]
# rows of a batch that fit into a message
_SHOWN = 8


class LossesOfABatch(Protocol):
    """What is looked at: a loss and a time for each sample, `(B,)`."""

    total: Tensor
    t: Tensor


class NonFiniteLoss:
    """Stops at such a loss, or leaves its batch out and counts it; all processes do the same.

    Args:
        policy: "stop" or "skip".
    """

    def __init__(self, policy: NonFinitePolicy) -> None:
        if policy not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite is 'stop' or 'skip'; given was {policy!r}.")
        self.policy = policy
        self.skipped = 0

    def accepts(self, losses: LossesOfABatch, iteration: int, world: int) -> bool:
        """Tell whether the batch may be learned from.

        Raises:
            RunError: where the policy is to stop; says which samples at which times.
        """
        bad = ~torch.isfinite(losses.total.detach())
        any_bad = bad.any()
        if world > 1:
            any_bad = any_bad.float()
            torch.distributed.all_reduce(any_bad, torch.distributed.ReduceOp.MAX)
        if not bool(any_bad):
            return True
        if self.policy == "stop":
            raise RunError(self._message(bad, losses, iteration))
        self.skipped += 1
        return False

    def _message(self, bad: Tensor, losses: LossesOfABatch, iteration: int) -> str:
        rows = bad.nonzero().flatten().tolist()
        where = (
            f"samples {rows[:_SHOWN]}{' ...' if len(rows) > _SHOWN else ''} of the batch, at t ="
            f" {[round(float(losses.t[row]), 4) for row in rows[:_SHOWN]]}"
            if rows
            else "the batch of another process"
        )
        return (
            f"The loss of iteration {iteration} is NaN or infinite ({where}). No weight has been moved by it, and the"
            " checkpoints are those of before. Lower the learning rate, clip the gradient (gradient_clip_val), use"
            " bf16-mixed instead of 16-mixed, look at the data; or leave such batches out with on_nonfinite: skip."
        )
