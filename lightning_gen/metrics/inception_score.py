r"""Inception score: :math:`\exp\, \mathbb{E}_x\, \mathrm{KL}(p(y | x) \,\|\, p(y))`, averaged over splits.

It grows with confident classes in equal numbers and sees neither the reference nor missing variety within a
class. Samples sorted by class give each split few classes and a score too low, so they are shuffled first.

References:
    - Improved techniques for training GANs (section 4). https://arxiv.org/abs/1606.03498
    - A note on the inception score. https://arxiv.org/abs/1801.01973
"""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class InceptionScore(NamedTuple):
    """An inception score.

    Attributes:
        value: mean over the splits, 1 to the number of classes.
        std: standard deviation over the splits (divided by their number), None for a single split.
        splits: number of splits.
    """

    value: float
    std: float | None
    splits: int


def inception_score(logits: Tensor, splits: int = 10, shuffle_seed: int | None = 0) -> InceptionScore:
    """Inception score of the class scores of generated images, in float64.

    Args:
        logits: (N, K) class scores before the softmax.
        splits: number of parts, of N / splits samples give or take one.
        shuffle_seed: seed of a shuffle before the split; None keeps the order. The global generator is left alone.

    Returns:
        Value, spread and number of splits.

    Raises:
        ValueError: fewer samples than splits, or not a matrix.
    """
    if logits.ndim != 2 or splits < 1:
        raise ValueError(f"Expected logits (N, K) and splits >= 1, got {tuple(logits.shape)} and splits={splits}.")
    n = len(logits)
    if n < splits:
        raise ValueError(f"{n} samples cannot make {splits} splits. Take at least {splits} samples, or fewer splits.")
    if not logits.isfinite().all():
        raise ValueError("The logits hold values that are not finite (inf or nan).")
    if shuffle_seed is not None:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(shuffle_seed))
        logits = logits[order.to(logits.device)]
    log_p = (logits.cpu() if logits.device.type == "mps" else logits).double().log_softmax(1)
    bounds = [part * n // splits for part in range(splits + 1)]
    parts = [_one(log_p[first:last]) for first, last in pairwise(bounds)]
    values = torch.stack(parts).cpu()
    std = float(values.std(correction=0)) if splits > 1 else None
    return InceptionScore(float(values.mean()), std, splits)


def _one(log_p: Tensor) -> Tensor:
    # log of the mean of p without leaving the logarithm: no class has a marginal of exactly zero
    log_marginal = log_p.logsumexp(0) - torch.tensor(float(len(log_p)), dtype=log_p.dtype).log()
    return (log_p.exp() * (log_p - log_marginal)).sum(1).mean().exp()
