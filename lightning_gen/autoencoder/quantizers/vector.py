r"""The quantizer of VQ-VAE: the nearest of K learned vectors.

.. math:: q = e_k, \quad k = \arg\min_j \|z - e_j\|, \qquad
    L = \|\operatorname{sg}(z) - e_k\|^2 + \beta\, \|z - \operatorname{sg}(e_k)\|^2,

means over all dimensions (equation 3). The first term moves the codebook alone, the second, the commitment, the encoder
alone; with moving averages the first is left out.

References:
    Neural Discrete Representation Learning
    https://arxiv.org/abs/1711.00937
"""

from torch import Tensor

from lightning_gen.autoencoder.bottlenecks import Bottled
from lightning_gen.autoencoder.quantizers.base import (
    Quantizer,
    channels_first,
    channels_last,
    full_precision,
    straight_through,
)
from lightning_gen.autoencoder.quantizers.codebook import Codebook
from lightning_gen.autoencoder.quantizers.counts import CodeCounts
from lightning_gen.seeding import RandomStream

ADVICE = (
    "Let unused codes start anew (restart_below: 0.1), compare directions (normalized: true), or take a smaller"
    " codebook_size."
)


class VectorQuantizer(Quantizer):
    """Vectors to the nearest code.

    Args:
        channels: length of a code; the features have as many channels.
        codebook_size: number K of codes.
        beta: weight of the commitment.
        ema_decay: decay of the moving averages that make the codes, 0.99 as published; null for codes that learn by
            gradients. A batch of accumulated gradients moves them too.
        normalized: whether features and codes are scaled to length 1.
        restart_below: a code that is chosen less often than this share of n / K, n vectors being in a batch, becomes
            one of them; 0 for no restarts. An optimizer's moments of such a code stay as they are.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        channels: int,
        codebook_size: int = 512,
        beta: float = 0.25,
        ema_decay: float | None = None,
        normalized: bool = False,
        restart_below: float = 0.0,
    ) -> None:
        super().__init__(channels, channels, codebook_size)
        self.beta = checked_beta(self, beta)
        self.codebook = Codebook(codebook_size, channels, ema_decay, normalized, restart_below)
        self.counts = CodeCounts(codebook_size, advice=ADVICE)

    def forward(self, features: Tensor, stream: RandomStream | None = None) -> Bottled:
        """Map features `(B, C, h, w)` to codes; see `Bottleneck.forward`. Nothing is drawn."""
        self.check(features)
        with full_precision(features):
            z = self.codebook.prepared(channels_last(features))
            if self.learns:
                self.codebook.restart(z)
            indices = self.codebook.nearest(z)
            quantized = self.codebook.rows(indices)
            loss, logs = losses(self.codebook, z, quantized, self.beta)
            if self.learns:
                self.codebook.update(z, indices)
                self.counts.count(indices)
            return Bottled(channels_first(straight_through(z, quantized)), loss, logs | self.use(), indices)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Map codes `(B, h, w)` to latents; see `Quantizer.decode_indices`."""
        self.check_indices(indices, 3)
        return channels_first(self.codebook.rows(indices))


def losses(
    codebook: Codebook, z: Tensor, quantized: Tensor, beta: float, weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of one codebook, and what is logged of it.

    Args:
        codebook: where the codes are from.
        z: vectors `(B, ..., D)`.
        quantized: their codes.
        beta: weight of the commitment.
        weights: factor of each sample, `(B,)`; None for 1.
    """
    commitment = _mean_square(z - quantized.detach(), weights)
    logs = {"commitment_loss": commitment.detach()}
    loss = beta * commitment
    if not codebook.averaged:
        attraction = _mean_square(z.detach() - quantized, weights)
        loss = loss + attraction
        logs["codebook_loss"] = attraction.detach()
    return loss, logs


def _mean_square(error: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return error.square().mean()
    return (error.square().flatten(1).mean(1) * weights).mean()


def checked_beta(quantizer: Quantizer, beta: float) -> float:
    """Return the weight of a commitment, or raise a ValueError where it is negative."""
    if beta < 0:
        raise ValueError(f"{type(quantizer).__name__}: beta is 0 or more; given was {beta}.")
    return beta
