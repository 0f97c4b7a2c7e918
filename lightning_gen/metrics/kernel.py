r"""Kernel distance (KID): squared maximum mean discrepancy with the kernel :math:`(x \cdot y / d + 1)^3`.

.. math::

    \mathrm{MMD}^2 = \frac{\sum_{i \ne j} k(x_i, x_j)}{m (m - 1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{m (m - 1)}
                     - \frac{2}{m^2} \sum_{i, j} k(x_i, y_j)

averaged over random subsets of m samples a side. It is unbiased: equal distributions give 0 on average, and
single values may be negative.

References:
    - Demystifying MMD GANs (section 4 and appendix D). https://arxiv.org/abs/1801.01401
    - A kernel two-sample test (lemma 6). https://jmlr.org/papers/v13/gretton12a.html
"""

from typing import NamedTuple

import torch
from torch import Tensor


class KernelDistance(NamedTuple):
    """A kernel distance with what it was computed from.

    Attributes:
        value: mean over the subsets.
        std: standard deviation over the subsets (divided by their number), None for a single subset. It measures
            the spread of subsets, not the error of the mean.
        subsets: number of subsets used; 1 where a subset is the whole of both sides.
        subset_size: samples a side in each subset, after clipping to the number there is.
    """

    value: float
    std: float | None
    subsets: int
    subset_size: int


def kernel_distance(x: Tensor, y: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KernelDistance:
    """Kernel distance between two sets of features, in float64.

    Args:
        x: (N, d) features of one side.
        y: (M, d) features of the other.
        subsets: number of random subsets.
        subset_size: samples a side in a subset; clipped to the smaller set.
        seed: of the generator that draws the subsets; the global one is left alone.

    Returns:
        Value, spread, and the subsets it was computed from.

    Raises:
        ValueError: shapes that do not fit, fewer than two samples, or settings out of range.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"Expected features (N, d) and (M, d), got {tuple(x.shape)} and {tuple(y.shape)}.")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"A kernel distance needs at least 2 samples a side, got {len(x)} and {len(y)}.")
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"Expected subsets >= 1 and subset_size >= 2, got {subsets} and {subset_size}.")
    size = min(subset_size, len(x), len(y))
    if size == len(x) == len(y):
        subsets = 1
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([_one(x, y, size, generator) for _ in range(subsets)], dtype=torch.float64)
    std = float(values.std(correction=0)) if subsets > 1 else None
    return KernelDistance(float(values.mean()), std, subsets, size)


def mmd2(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of the cubic kernel.

    Args:
        x: (m, d) features.
        y: (n, d) features.

    Returns:
        Scalar, of the type of the features.
    """
    m, n = len(x), len(y)
    within_x, within_y = _kernel(x, x), _kernel(y, y)
    return (
        (within_x.sum() - within_x.trace()) / (m * (m - 1))
        + (within_y.sum() - within_y.trace()) / (n * (n - 1))
        - 2 * _kernel(x, y).mean()
    )


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    # products, since a power of a tensor is many times slower
    base = (x @ y.T).div_(x.shape[1]).add_(1.0)
    return base * base * base


def _one(x: Tensor, y: Tensor, size: int, generator: torch.Generator) -> float:
    rows_x = torch.randperm(len(x), generator=generator)[:size].to(x.device)
    rows_y = torch.randperm(len(y), generator=generator)[:size].to(y.device)
    ours = _double(x[rows_x])
    return float(mmd2(ours, _double(y[rows_y]).to(ours.device)))


def _double(x: Tensor) -> Tensor:
    return (x.cpu() if x.device.type == "mps" else x).detach().double()
