r"""Finite scalar quantization (FSQ): each channel is bounded and rounded to one of few levels; nothing is learned.

With L levels of a channel, :math:`h = (L - 1)(1 - \epsilon) / 2`, :math:`\epsilon = 10^{-3}`, and an offset o of 1/2
for even L and 0 for odd L (appendix A.1):

.. math:: \hat z = \operatorname{round}\bigl( h \tanh(z + \tan(o / h)) - o \bigr), \qquad
    q = \hat z / \lfloor L / 2 \rfloor

The codebook is the grid of all combinations; the code of a place is the number whose digits are
:math:`\hat z + \lfloor L / 2 \rfloor`, the first channel's the least. There is no loss.

References:
    Finite Scalar Quantization: VQ-VAE Made Simple
    https://arxiv.org/abs/2309.15505
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_gen.autoencoder.bottlenecks import Bottled
from lightning_gen.autoencoder.quantizers.base import (
    Quantizer,
    channels_first,
    channels_last,
    full_precision,
    straight_through,
)
from lightning_gen.autoencoder.quantizers.counts import CodeCounts
from lightning_gen.seeding import RandomStream

_EPSILON = 1e-3
_LARGEST = 2**20
_ADVICE = "Take fewer levels or fewer channels."


class FiniteScalarQuantizer(Quantizer):
    """Channels to levels; the latents are multiples of 1 / floor(L / 2) in [-1, 1].

    Args:
        levels: number L of levels of each channel, 2 or more, so that the features have as many channels as there are
            numbers here. The paper takes [8, 6, 5] for 240 codes, [8, 5, 5, 5] for 1000, [8, 8, 8, 5, 5, 5] for 64000.

    Raises:
        ValueError: for no levels, less than two, or more than 2^20 codes.
    """

    levels: Tensor
    basis: Tensor
    half_width: Tensor

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        given = list(levels)
        if not given or any(level != int(level) or level < 2 for level in given):
            raise ValueError(f"FiniteScalarQuantizer takes levels of 2 or more, such as [8, 5, 5, 5]; not {given}.")
        size = math.prod(given)
        if size > _LARGEST:
            raise ValueError(
                f"FiniteScalarQuantizer: levels {given} make {size} codes, and 2^20 are the most: take fewer."
            )
        super().__init__(len(given), len(given), size)
        basis = [math.prod(given[:channel]) for channel in range(len(given))]
        self.register_buffer("levels", torch.tensor(given), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        self.register_buffer("half_width", torch.tensor([float(level // 2) for level in given]), persistent=False)
        self.counts = CodeCounts(size, advice=_ADVICE)

    def bound(self, z: Tensor) -> Tensor:
        """Map vectors `(..., C)` to between the lowest and the highest level."""
        half = (self.levels.to(z.dtype) - 1) * ((1 - _EPSILON) / 2)
        offset = 0.5 * (self.levels % 2 == 0).to(z.dtype)
        return torch.tanh(z + torch.tan(offset / half)) * half - offset

    def forward(self, features: Tensor, stream: RandomStream | None = None) -> Bottled:
        """Map features `(B, C, h, w)` to levels; see `Bottleneck.forward`. Nothing is drawn."""
        self.check(features)
        with full_precision(features):
            bounded = self.bound(channels_last(features))
            rounded = bounded.detach().round()
            width = self.half_width.to(bounded.dtype)
            indices = ((rounded.long() + self.levels // 2) * self.basis).sum(-1)
            if self.learns:
                self.counts.count(indices)
            z = channels_first(straight_through(bounded, rounded) / width)
            return Bottled(z, z.new_zeros(()), self.use(), indices)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Map codes `(B, h, w)` to latents; see `Quantizer.decode_indices`."""
        self.check_indices(indices, 3)
        digits = indices[..., None] // self.basis % self.levels
        return channels_first((digits - self.levels // 2) / self.half_width)
