"""What the steps of all solvers are made of: sums of tensors with weights known on the host."""

import torch
from torch import Tensor

from lightning_gen.diffusion.solvers.base import Point


def weighted(*terms: tuple[float, Tensor]) -> Tensor:
    """Return the sum of tensors times numbers, one kernel a term; a term of weight 0 after the first is left out."""
    (weight, tensor), *others = terms
    total = tensor * weight
    for weight, tensor in others:
        if weight:
            total = torch.add(total, tensor, alpha=weight)
    return total


def shrinkage(here: Point, there: Point) -> float:
    r"""Return the ratio of the two noise levels, :math:`r = e^{-h}`: 0 from infinite noise, and to none."""
    return here.alpha * there.sigma / (there.alpha * here.sigma)
