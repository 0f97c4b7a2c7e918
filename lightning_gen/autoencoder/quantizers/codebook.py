r"""A table of K vectors, and how it learns: by gradients, or by moving averages; and how its dead codes start anew.

With :math:`n_k` the number of vectors in a batch whose nearest code is k, and :math:`s_k` their sum (van den Oord et
al., appendix A.1):

.. math::
    N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \qquad m_k \leftarrow \gamma m_k + (1 - \gamma) s_k, \qquad
    e_k = m_k \Big/ \frac{N_k + \epsilon}{\sum_j N_j + K \epsilon} \sum_j N_j

the divisor being :math:`N_k` with Laplace smoothing, :math:`\epsilon = 10^{-5}`.

With normalized codes, all vectors have length 1 and :math:`e_k = m_k / |m_k|`.

A code is dead where :math:`N_k` is below a share of n / K, its equal share of a batch's n vectors. It becomes a vector
of the batch, before the batch's codes are looked up, and :math:`N_k` becomes n / K and :math:`m_k` fits it: it lives
for a while even where nothing is near. With such restarts all codes are dead at first, so that a codebook begins as
vectors of the first batch; without, with :math:`N_k = 1`, as numbers uniform in (-1 / K, 1 / K) (or as random
directions). No k-means is run.

Sums run over the vectors of all processes, and candidates are drawn from the joined batch, so that every process has
the codebook that one process would have.

References:
    Neural Discrete Representation Learning
    https://arxiv.org/abs/1711.00937
    Jukebox: A Generative Model for Music (section 3.1: random restarts)
    https://arxiv.org/abs/2005.00341
    Vector-quantized Image Modeling with Improved VQGAN (normalized codes)
    https://arxiv.org/abs/2110.04627
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.autoencoder.joined import permutation, summed
from lightning_gen.metrics.distributed import world

LAPLACE = 1e-5
_DECAY = 0.99
_LARGEST_TABLE = 2**26
"""Distances in memory at once: 256 MiB of float32."""


class Codebook(nn.Module):
    """K vectors.

    Args:
        size: number K of codes.
        dim: length D of a code.
        ema_decay: decay of the moving averages; None for codes that are parameters.
        normalized: whether vectors and codes have length 1.
        restart_below: share of the equal share below which a code is dead; 0 for no restarts.
        stage: the number of this codebook among several, which then draw different candidates.

    Attributes:
        codes: `(K, D)`, a parameter or a buffer.
        cluster_size: buffer, N, `(K,)`.
        sums: buffer, m, `(K, D)`; there is none where the codes are parameters.
        updates: buffer, the number of batches seen.

    Raises:
        ValueError: for a decay or a share out of range.
    """

    codes: Tensor
    cluster_size: Tensor
    sums: Tensor | None
    updates: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        ema_decay: float | None = None,
        normalized: bool = False,
        restart_below: float = 0.0,
        stage: int = 0,
    ) -> None:
        super().__init__()
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay is in [0, 1), or null for codes that learn by gradients; not {ema_decay}.")
        if not 0 <= restart_below < 1:
            raise ValueError(f"restart_below is a share in [0, 1), 0 for no restarts; given was {restart_below}.")
        self.normalized, self.restart_below, self.stage = normalized, restart_below, stage
        self.averaged, self.decay = ema_decay is not None, _DECAY if ema_decay is None else ema_decay
        codes = F.normalize(torch.randn(size, dim), dim=1) if normalized else (torch.rand(size, dim) * 2 - 1) / size
        size_at_first = 0.0 if restart_below else 1.0
        self.register_buffer("cluster_size", torch.full((size,), size_at_first))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        if self.averaged:
            self.register_buffer("codes", codes)
            self.register_buffer("sums", codes * size_at_first)
        else:
            self.codes, self.sums = nn.Parameter(codes), None

    def prepared(self, vectors: Tensor) -> Tensor:
        """Return vectors as they are compared to codes: of length 1 where codes are."""
        return F.normalize(vectors, dim=-1) if self.normalized else vectors

    def rows(self, indices: Tensor) -> Tensor:
        """Return codes `(..., D)` of indices `(...)`, with gradients where the codes are parameters."""
        return self.prepared(F.embedding(indices, self.codes))

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index of the code at the least distance, int64 `(...)`, of vectors `(..., D)`."""
        codes = self.prepared(self.codes).to(vectors.dtype)
        half_squares = 0.5 * codes.square().sum(1)
        flat = vectors.reshape(-1, vectors.shape[-1])
        # |z - e|^2 without |z|^2, which all codes have in common
        found = [
            torch.addmm(half_squares, part, codes.t(), alpha=-1).argmin(1)
            for part in torch.split(flat, max(1, _LARGEST_TABLE // len(codes)))
        ]
        return torch.cat(found).view(vectors.shape[:-1])

    @torch.no_grad()
    def restart(self, vectors: Tensor) -> None:
        """Put dead codes where vectors are; every process has to call, before the batch is looked up.

        Nothing moves by a batch with a vector that is not finite.

        Args:
            vectors: `(B, ..., D)` of this process; sample i is sample i world + rank of the joined batch.
        """
        if not self.restart_below:
            return
        rank, processes = world()
        flat = vectors.flatten(1, -2)
        samples, places, dim = flat.shape
        chosen = self._candidates(samples * places * processes)
        sample, place = chosen // places, chosen % places
        held = sample % processes == rank
        own = flat.reshape(-1, dim)[(sample // processes) * places + place]
        own = torch.where(held[:, None], own, torch.zeros_like(own))
        # whether a candidate was found on one process, how many vectors there are and whether all are finite go along
        broken = (~torch.isfinite(flat).all()).to(own.dtype).view(1)
        sent = torch.cat([own.flatten(), held.to(own.dtype), own.new_full((1,), samples * places), broken])
        received = summed(sent)
        codes, found = received[: own.numel()].view_as(own), received[own.numel() : -2]
        share, fine = received[-2] / len(codes), received[-1] == 0
        dead = (self.cluster_size < self.restart_below * share) & (found == 1) & fine
        self.codes.copy_(torch.where(dead[:, None], codes, self.codes))
        self.cluster_size.copy_(torch.where(dead, share, self.cluster_size))
        if self.sums is not None:
            self.sums.copy_(torch.where(dead[:, None], share * codes, self.sums))

    def _candidates(self, vectors: int) -> Tensor:
        """Return the place in the joined batch of each code's candidate, `(K,)`: different ones as far as they go."""
        size = len(self.codes)
        order = permutation(vectors, self.updates + (self.stage << 48))
        return order[torch.arange(size, device=order.device) % vectors]

    @torch.no_grad()
    def update(self, vectors: Tensor, indices: Tensor, weights: Tensor | None = None) -> None:
        """Move the averages by the vectors of a batch; every process has to call, after the batch is looked up.

        Nothing moves by a batch with a vector that is not finite.

        Args:
            vectors: `(..., D)`, prepared.
            indices: their codes, int64 `(...)`.
            weights: 0 for a vector that does not count, else 1; None where all do.
        """
        self.updates += 1
        if not self.averaged and not self.restart_below:
            return
        flat, found = vectors.reshape(-1, vectors.shape[-1]), indices.flatten()
        counted = torch.ones_like(flat[:, 0]) if weights is None else weights.flatten().to(flat.dtype)
        # sums and counts side by side: one exchange
        columns = torch.cat([flat * counted[:, None], counted[:, None]], dim=1)
        totals = columns.new_zeros(len(self.codes), columns.shape[1]).index_add_(0, found, columns)
        totals = summed(totals)
        fine = torch.isfinite(totals).all()
        weight = fine.to(totals.dtype) * (1 - self.decay)
        totals = torch.where(fine, totals, torch.zeros_like(totals))
        self.cluster_size.lerp_(totals[:, -1], weight)
        if self.sums is not None:
            self.sums.lerp_(totals[:, :-1], weight)
            self.codes.copy_(torch.where(fine, self._means(self.sums), self.codes))

    def _means(self, sums: Tensor) -> Tensor:
        if self.normalized:
            lengths = sums.norm(dim=1, keepdim=True)
            # a direction that nothing has gone in for thousands of batches is kept before it is lost to rounding
            return torch.where(lengths > 1e-12, sums / lengths, self.codes)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + LAPLACE) / (total + len(sums) * LAPLACE) * total
        return sums / smoothed[:, None]
