r"""How often each code of a codebook is chosen: the share of codes in use, and their perplexity.

.. math:: \exp\left( -\sum_k p_k \log p_k \right), \qquad p_k = n_k / \sum_j n_j

is the number of codes, used equally often, that would be as hard to foretell: K at best, 1 where all vectors have one
code. The numbers n are those of the last 100 to 200 batches of training, over all processes.

References:
    Neural Discrete Representation Learning
    https://arxiv.org/abs/1711.00937
"""

import warnings

import torch
from torch import Tensor, nn

from lightning_gen.autoencoder.joined import summed
from lightning_gen.metrics.distributed import world

WINDOW = 100
"""Batches in a block; two blocks are kept, the one that fills and the one before."""

WARN_BELOW = 0.1
"""Share of codes in use below which a codebook is too large for what it is used for."""


class CodeCounts(nn.Module):
    """Counts of codes, in integers, so that they are the same in every precision and on every number of processes.

    Args:
        codebook_size: number K of codes.
        num_quantizers: number Q of codes of one place.
        advice: what to do where few codes are in use, for the warning.

    Attributes:
        counts: buffer `(2, Q, K)`: of the block of batches that fills, and of the one before.
        updates: buffer, the number of batches counted.
    """

    counts: Tensor
    updates: Tensor

    def __init__(self, codebook_size: int, num_quantizers: int = 1, advice: str = "") -> None:
        super().__init__()
        self.advice = advice
        self.register_buffer("counts", torch.zeros(2, num_quantizers, codebook_size, dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # how often this process looks is no part of the state: it only spaces the looks, each of which waits
        self._calls = self._low = 0

    @property
    def usage(self) -> Tensor:
        """Share of codes chosen at least once, in [0, 1], of each of the Q codes of a place: `(Q,)`."""
        return self.counts.sum(0).clamp(max=1).float().mean(-1)

    @property
    def perplexity(self) -> Tensor:
        """Perplexity in [1, K] of each of the Q codes of a place: `(Q,)`."""
        recent = self.counts.sum(0).float()
        shares = recent / recent.sum(-1, keepdim=True).clamp(min=1)
        entropy: Tensor = torch.special.entr(shares).sum(-1)
        return entropy.exp()

    @torch.no_grad()
    def count(self, indices: Tensor) -> None:
        """Count the codes of a batch; every process has to call.

        Args:
            indices: int64 `(..., Q)`, or `(...)` where Q is 1; a negative one stands for no code.
        """
        _, places, size = self.counts.shape
        codes = indices.reshape(-1, places)
        flat = codes.clamp(min=0) + size * torch.arange(places, device=codes.device)
        new = self.counts.new_zeros(places * size).scatter_add_(0, flat.flatten(), (codes >= 0).long().flatten())
        new = summed(new).view(places, size)
        current, before = self.counts
        full = (self.updates % WINDOW == 0) & (self.updates > 0)
        self.counts.copy_(torch.stack([torch.where(full, new, current + new), torch.where(full, current, before)]))
        self.updates += 1
        self._watch()

    def _watch(self) -> None:
        """Warn once where few codes are in use at two looks in a row."""
        self._calls += 1
        if self._calls % WINDOW or self._low > 1 or world()[0] > 0:
            return
        share = float(self.usage.min())
        self._low = self._low + 1 if share < WARN_BELOW else 0
        if self._low > 1:
            _, _, size = self.counts.shape
            warnings.warn(
                f"{share:.1%} of {size} codes were in use in the last {WINDOW} to {2 * WINDOW} batches: the others are"
                f" dead weight. {self.advice}".rstrip(),
                stacklevel=2,
            )
