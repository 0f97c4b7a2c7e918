"""A loss or a gradient that is NaN or infinite: found before it moves a weight."""

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_gen.errors import RunError

NonFinitePolicy = Literal["stop", "skip"]
# rows of a batch that fit into a message
_SHOWN = 8


ADVICE = (
    "Lower the learning rate, clip the gradient (gradient_clip_val), use bf16-mixed instead of 16-mixed, look at the"
    " data; or leave such batches out with on_nonfinite: skip."
)


def checked(policy: NonFinitePolicy) -> NonFinitePolicy:
    """Return the policy.

    Raises:
        ValueError: where there is no such policy.
    """
    if policy not in ("stop", "skip"):
        raise ValueError(f"on_nonfinite is 'stop' or 'skip'; given was {policy!r}.")
    return policy


class FiniteGradients:
    """Stops at such a gradient, or leaves its step out and counts it; all processes have the same gradients.

    The loss is in its gradients, so that a module that looks at nothing else misses no NaN. On the CPU, and to skip,
    the answer is waited for. To stop on a GPU it is looked at when the next step is taken, or a checkpoint is made,
    which would otherwise wait for the device in every iteration: by then the step has been taken, and is not saved.

    Args:
        policy: "stop" or "skip".
    """

    def __init__(self, policy: NonFinitePolicy) -> None:
        self.policy = checked(policy)
        self.skipped = 0
        self._waiting: tuple[Tensor, str] | None = None

    def accepts(self, gradients: Sequence[Tensor], where: Callable[[], str]) -> bool:
        """Tell whether the step may be taken.

        Args:
            gradients: all of one optimizer's.
            where: says what they are of, for the message.

        Raises:
            RunError: where the policy is to stop, for this step or for the one before.
        """
        self.settle()
        if not gradients:
            return True
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = torch.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if self.policy == "stop" and finite.device.type != "cpu":
            self._waiting = finite, where()
            return True
        if bool(finite):
            return True
        if self.policy == "stop":
            raise RunError(self._message(where()))
        self.skipped += 1
        return False

    def settle(self) -> None:
        """Look at the step before, where that has waited.

        Raises:
            RunError: where its gradient was not finite.
        """
        if self._waiting is not None:
            (finite, where), self._waiting = self._waiting, None
            if not bool(finite):
                raise RunError(self._message(where))

    def _message(self, where: str) -> str:
        return (
            f"The gradient of {where} is NaN or infinite, or its norm overflows. No checkpoint holds what came of it;"
            f" the run can be continued from the last one. {ADVICE}"
        )


class LossesOfABatch(Protocol):
    """What is looked at: a loss for each sample, `(B,)`, and a time, where there are times."""

    @property
    def total(self) -> Tensor:
        """The losses."""
        ...

    @property
    def t(self) -> Tensor | None:
        """The times."""
        ...


class NonFiniteLoss:
    """Stops at such a loss, or leaves its batch out and counts it; all processes do the same.

    Args:
        policy: "stop" or "skip".
    """

    def __init__(self, policy: NonFinitePolicy) -> None:
        self.policy = checked(policy)
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
        where = "the batch of another process"
        if rows:
            where = f"samples {rows[:_SHOWN]}{' ...' if len(rows) > _SHOWN else ''} of the batch"
            if losses.t is not None:
                where += f", at t = {[round(float(losses.t[row]), 4) for row in rows[:_SHOWN]]}"
        return (
            f"The loss of iteration {iteration} is NaN or infinite ({where}). No weight has been moved by it, and the"
            f" checkpoints are those of before. {ADVICE}"
        )
