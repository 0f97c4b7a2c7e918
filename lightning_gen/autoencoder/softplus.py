r"""The sum of softplus over the logits of an image, :math:`\sum_i \log(1 + e^{l_i})`, in the time of an exponential.

.. math:: \log(1 + e^l) = \max(l, 0) - \log \sigma(|l|)

is right to the rounding of 1. torch's own keeps all digits of values near 0 too, by `log1p`, which on a CPU can cost
several times a logarithm: a quarter of an importance-weighted step, see docs/performance.md. A sum over pixels does not
see those digits. Rows are taken a few at a time: what lies between the two ends stays in the cache.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_AT_ONCE = 1 << 16


class _SoftplusSum(torch.autograd.Function):
    """The formula above, whose gradient is the sigmoid everywhere, at 0 too."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        if torch.compiler.is_compiling():  # which makes one pass of it
            return _softplus(logits).sum(-1)
        rows = logits.reshape(-1, logits.shape[-1])
        parts = torch.split(rows, max(1, _AT_ONCE // max(1, rows.shape[1])))
        return torch.cat([_softplus(part).sum(-1) for part in parts]).view(logits.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        slope, outer = torch.sigmoid(ctx.saved_tensors[0]), gradients[0].unsqueeze(-1)
        # in place, unless it is to be differentiated again
        return slope * outer if torch.is_grad_enabled() else slope.mul_(outer)


def _softplus(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits.abs()).log_().neg_().add_(logits.clamp(min=0))


def softplus_sum(logits: Tensor) -> Tensor:
    """Return the sums `(...)` of log(1 + exp(l)) over logits `(..., D)`; on a GPU by torch's own."""
    if logits.device.type == "cpu":
        found: Tensor = _SoftplusSum.apply(logits)
        return found
    return F.softplus(logits).sum(-1)
