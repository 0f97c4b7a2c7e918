r"""How a network is told a number: sines and cosines of the noise label at many frequencies.

Positional: with d the width, h = d / 2 and s the shift, the label c becomes the sines and the cosines of

.. math:: c\,\omega_i, \qquad \omega_i = P^{-i / (h - s)}, \qquad i = 0, \dots, h - 1,

P being the longest period over 2 pi. A shift of 1 ends at 1 / P exactly (DDPM, DDPM++), 0 one step before it
(ADM, DiT). Random Fourier features take :math:`2 \pi f_i c` instead, with f drawn once from a normal distribution.

The frequencies span four decades, so labels and angles stay in float32 or wider whatever the network computes in:
in bfloat16 only about half of the labels 0 to 999 are told apart.

References:
    Attention Is All You Need (section 3.5): https://arxiv.org/abs/1706.03762
    Denoising Diffusion Probabilistic Models: https://arxiv.org/abs/2006.11239
    Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains:
        https://arxiv.org/abs/2006.10739
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

EmbeddingOrder: TypeAlias = Literal["sin_cos", "cos_sin"]


def at_least_float32(label: Tensor) -> Tensor:
    """Widen integers and half precision to float32; leave float32 and float64 alone."""
    return label.to(torch.promote_types(label.dtype, torch.float32))


def _waves(angles: Tensor, order: EmbeddingOrder) -> Tensor:
    sin, cos = angles.sin(), angles.cos()
    return torch.cat([sin, cos] if order == "sin_cos" else [cos, sin], dim=-1)


def _checked(name: str, dim: int, order: str) -> None:
    if dim < 2 or dim % 2:
        raise ValueError(f"{name}: dim is an even number, 2 or more (half sines, half cosines), not {dim}.")
    if order not in ("sin_cos", "cos_sin"):
        raise ValueError(f"{name}: order is 'sin_cos' or 'cos_sin', not {order!r}.")


class PositionalEmbedding(nn.Module):
    """Sines and cosines at geometrically spaced frequencies; nothing is learned.

    Args:
        dim: width of the embedding, even.
        max_period: P, the longest period divided by 2 pi.
        freq_shift: 1 ends at the frequency 1 / P, 0 one step before it.
        order: which half comes first.

    Raises:
        ValueError: for an odd width, a period that is not positive or a shift that leaves nothing to divide by.
    """

    def __init__(
        self, dim: int, max_period: float = 10000, freq_shift: int = 0, order: EmbeddingOrder = "sin_cos"
    ) -> None:
        super().__init__()
        _checked(type(self).__name__, dim, order)
        if max_period <= 0:
            raise ValueError(f"PositionalEmbedding: max_period is a positive number, not {max_period}.")
        if freq_shift not in (0, 1) or dim // 2 <= freq_shift:
            raise ValueError(
                f"PositionalEmbedding: freq_shift is 0, or 1 from dim=4 on, not {freq_shift} at dim={dim}."
            )
        self.dim, self.max_period, self.freq_shift = dim, float(max_period), freq_shift
        self.order: EmbeddingOrder = order

    def extra_repr(self) -> str:
        """Show the arguments."""
        return f"{self.dim}, max_period={self.max_period:g}, freq_shift={self.freq_shift}, order={self.order!r}"

    def forward(self, label: Tensor) -> Tensor:
        """Embed `(B,)` as `(B, dim)`, in the label's precision, float32 at least."""
        label = at_least_float32(label)
        half = self.dim // 2
        # Computed in every call: as a buffer, `.bfloat16()` would round the frequencies.
        steps = torch.arange(half, dtype=label.dtype, device=label.device)
        frequencies = torch.exp(-math.log(self.max_period) * steps / (half - self.freq_shift))
        return _waves(label[:, None] * frequencies, self.order)


class RandomFourierEmbedding(nn.Module):
    """Sines and cosines at random frequencies, drawn once and kept with the weights.

    Args:
        dim: width of the embedding, even.
        scale: standard deviation of the frequencies, in periods for each unit of the label.
        order: which half comes first.

    Raises:
        ValueError: for an odd width or a scale that is not positive.
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 16.0, order: EmbeddingOrder = "cos_sin") -> None:
        super().__init__()
        _checked(type(self).__name__, dim, order)
        if scale <= 0:
            raise ValueError(f"RandomFourierEmbedding: scale is a positive number, not {scale}.")
        self.dim, self.scale = dim, float(scale)
        self.order: EmbeddingOrder = order
        self.register_buffer("frequencies", torch.randn(dim // 2) * scale)

    def extra_repr(self) -> str:
        """Show the arguments."""
        return f"{self.dim}, scale={self.scale:g}, order={self.order!r}"

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "RandomFourierEmbedding":
        kept = self.frequencies
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if torch.finfo(self.frequencies.dtype).bits < 32:
            # `.bfloat16()` is for what the network computes in; the frequencies stay what they were.
            self.frequencies = kept.to(self.frequencies.device)
        return self

    def forward(self, label: Tensor) -> Tensor:
        """Embed `(B,)` as `(B, dim)`, in the label's precision, float32 at least."""
        label = at_least_float32(label)
        frequencies = self.frequencies.to(label.dtype)
        return _waves(label[:, None] * (2 * math.pi * frequencies), self.order)
