r"""Residual vector quantization: each of Q codes stands for what the ones before it left over.

.. math:: r_0 = z, \qquad q_i = \text{the code nearest to } r_{i-1}, \qquad r_i = r_{i-1} - q_i, \qquad
    q = \sum_{i \le n} q_i

with the sum of the stages' losses (RQ-VAE, section 3.1). Any first n of the codes are a coarser latent; with dropout,
decoders are trained for that: a sample is given the first n stages alone, n uniform in 1 ... Q (SoundStream, section
3.3), and the stages behind neither learn from it nor are decoded.

References:
    SoundStream: An End-to-End Neural Audio Codec
    https://arxiv.org/abs/2107.03312
    Autoregressive Image Generation using Residual Quantization (RQ-VAE; one codebook for all stages)
    https://arxiv.org/abs/2203.01941
    High-Fidelity Audio Compression with Improved RVQGAN (dropout of a share of the samples)
    https://arxiv.org/abs/2306.06546
"""

from typing import cast

import torch
from torch import Tensor, nn

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
from lightning_gen.autoencoder.quantizers.vector import ADVICE, checked_beta, losses
from lightning_gen.seeding import GeneratorStream, RandomStream


class ResidualQuantizer(Quantizer):
    """Vectors to sums of codes. The indices of stages that were dropped are -1.

    Args:
        channels: length of a code; the features have as many channels.
        codebook_size: number K of codes of a stage.
        num_quantizers: number Q of stages.
        beta: weight of the commitment of each stage.
        ema_decay: decay of the moving averages that make the codes; null for codes that learn by gradients.
        shared: whether all stages have one codebook.
        dropout: probability that a sample of a training batch is given the first n stages alone.
        restart_below: share of the equal share below which a code starts anew, see `VectorQuantizer`; 0 for no
            restarts. In a shared codebook it starts as a feature.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(
        self,
        channels: int,
        codebook_size: int = 512,
        num_quantizers: int = 4,
        beta: float = 0.25,
        ema_decay: float | None = None,
        shared: bool = False,
        dropout: float = 0.0,
        restart_below: float = 0.0,
    ) -> None:
        super().__init__(channels, channels, codebook_size, num_quantizers)
        if not 0 <= dropout <= 1:
            raise ValueError(f"ResidualQuantizer: dropout is a probability in [0, 1]; given was {dropout}.")
        self.beta, self.shared, self.dropout = checked_beta(self, beta), shared, dropout
        self.codebooks = nn.ModuleList(
            Codebook(codebook_size, channels, ema_decay, restart_below=restart_below, stage=stage)
            for stage in range(1 if shared else num_quantizers)
        )
        self.counts = CodeCounts(codebook_size, num_quantizers, ADVICE)

    def forward(self, features: Tensor, stream: RandomStream | None = None) -> Bottled:
        """Map features `(B, C, h, w)` to Q codes a place; see `Bottleneck.forward`. Dropout draws in training."""
        self.check(features)
        with full_precision(features):
            z = channels_last(features)
            kept = self._kept(z, stream)
            residuals, indices, loss, logs = self._stages(z, kept)
            dropped = None if kept is None else (kept == 0)[:, None, None, :]
            told = indices if dropped is None else indices.masked_fill(dropped, -1)
            quantized = self._sum(told)
            if self.learns:
                self._learn(residuals, indices, kept)
                self.counts.count(told)
            return Bottled(channels_first(straight_through(z, quantized)), loss, logs | self.use(), told)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Map codes `(B, h, w, n)` of the first n stages, n at most Q, to latents; see `Quantizer.decode_indices`."""
        self.check_indices(indices, 4, lowest=-1)
        if not 1 <= indices.shape[-1] <= self.num_quantizers:
            raise ValueError(
                f"ResidualQuantizer decodes the first 1 to {self.num_quantizers} codes of a place; given were"
                f" {indices.shape[-1]}."
            )
        return channels_first(self._sum(indices))

    def _codebook(self, stage: int) -> Codebook:
        return cast(Codebook, self.codebooks[0 if self.shared else stage])

    def _kept(self, z: Tensor, stream: RandomStream | None) -> Tensor | None:
        """Draw which stages each sample of a training batch is given, 0 or 1 `(B, Q)`; None for all."""
        if not self.training or not self.dropout:
            return None
        stream = stream if stream is not None else GeneratorStream(None, len(z), z.device, z.dtype)
        dropped = stream.uniform() < self.dropout
        stages = torch.where(dropped, stream.integers(self.num_quantizers) + 1, self.num_quantizers)
        return (torch.arange(self.num_quantizers, device=z.device) < stages[:, None]).to(z.dtype)

    def _stages(self, z: Tensor, kept: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor, dict[str, Tensor]]:
        """Return what each stage is given, the codes `(B, h, w, Q)`, the loss and the stages' losses, summed."""
        residuals, indices = [z], []
        loss, logs = z.new_zeros(()), dict[str, Tensor]()
        for stage in range(self.num_quantizers):
            codebook = self._codebook(stage)
            # the residuals of a shared codebook's later stages are not known yet where its first one begins
            if self.learns and (stage == 0 or not self.shared):
                codebook.restart(residuals[-1].detach())
            indices.append(codebook.nearest(residuals[-1]))
            quantized = codebook.rows(indices[-1])
            weights = None if kept is None else kept[:, stage]
            term, terms = losses(codebook, residuals[-1], quantized, self.beta, weights)
            loss = loss + term
            logs = {name: value + logs.get(name, 0.0) for name, value in terms.items()}
            residuals.append(residuals[-1] - quantized.detach())
        return residuals[:-1], torch.stack(indices, dim=-1), loss, logs

    def _learn(self, residuals: list[Tensor], indices: Tensor, kept: Tensor | None) -> None:
        vectors = torch.stack(residuals, dim=-2).detach()
        weights = None if kept is None else kept[:, None, None, :].expand(indices.shape)
        if self.shared:
            self._codebook(0).update(vectors, indices, weights)
            return
        for stage in range(self.num_quantizers):
            own = None if weights is None else weights[..., stage]
            self._codebook(stage).update(vectors[..., stage, :], indices[..., stage], own)

    def _sum(self, indices: Tensor) -> Tensor:
        """Add up the codes `(B, h, w, n)` of the first stages, in one order everywhere, to `(B, h, w, C)`."""
        total = torch.zeros((), device=indices.device)
        for stage, codes in enumerate(indices.unbind(-1)):
            rows = self._codebook(stage).rows(codes.clamp(min=0))
            total = total + torch.where((codes >= 0)[..., None], rows, torch.zeros_like(rows))
        return total
