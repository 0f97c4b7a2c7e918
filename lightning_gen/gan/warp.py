"""Affine resampling of images without aliasing: one matrix an image, one bilinear look-up.

    y = D(R(U(x)))

U doubles the resolution with the 7-tap synthesis filter of the Cohen-Daubechies-Feauveau 9/7 wavelet, R looks the
doubled image up bilinearly at the source of every position, D halves the resolution with the 9-tap analysis
filter. Outside of the image it is mirrored at the centers of the border pixels, without end.

Adaptive discriminator augmentation uses the orthogonal Symlet 6 in this place. It is not symmetric, so that a
mirrored or turned image comes out blurred. The 9/7 pair is biorthogonal (D U is the identity) and symmetric with
an odd number of taps, so flips, quarter turns and shifts by whole pixels are exact up to rounding, and linear
ramps are kept by every affine map.

The look-up is linear in the image and differentiable any number of times; torch has that for its own
`grid_sample` in its newest versions only.

References:
    Training Generative Adversarial Networks with Limited Data (appendix B), https://arxiv.org/abs/2006.06676
    Biorthogonal Bases of Compactly Supported Wavelets, https://doi.org/10.1002/cpa.3160450502
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Half of each symmetric filter, center first. The analysis filter sums to 1, the synthesis filter to 2.
ANALYSIS = (
    0.6029490182363604,
    0.26686411844287494,
    -0.07822326652899027,
    -0.016864118442874953,
    0.02674875741081009,
)
SYNTHESIS = (1.1150870524570005, 0.5912717631142501, -0.05754352622850018, -0.09127176311425009)
MARGIN = len(ANALYSIS) - 1

_BILINEAR, _REFLECTION = 0, 2


@lru_cache(maxsize=32)
def doubling(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return U along one axis, (2n - 1, n): position u of the doubled axis lies at pixel u / 2."""
    reach = len(SYNTHESIS) - 1
    period = max(2 * (n - 1), 1)
    matrix = torch.zeros(2 * n - 1, n, dtype=torch.float64)
    for u in range(2 * n - 1):
        for i in range(-((reach - u) // 2), (u + reach) // 2 + 1):
            folded = i % period
            matrix[u, min(folded, period - folded) if n > 1 else 0] += SYNTHESIS[abs(u - 2 * i)]
    return _constant(matrix, dtype, device)


@lru_cache(maxsize=32)
def halving(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return D along one axis, (n, 2n - 1 + 2 MARGIN): the doubled axis with a margin on both sides to pixels."""
    taps = torch.tensor(ANALYSIS[:0:-1] + ANALYSIS, dtype=torch.float64)
    matrix = torch.zeros(n, 2 * n - 1 + 2 * MARGIN, dtype=torch.float64)
    for i in range(n):
        matrix[i, 2 * i : 2 * i + len(taps)] = taps
    return _constant(matrix, dtype, device)


def _constant(matrix: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Move a cached matrix, as a tensor that later training may use even if sampling asked for it first."""
    with torch.inference_mode(False), torch.no_grad():
        return matrix.to(device=device, dtype=dtype).clone()


class _LookUp(torch.autograd.Function):
    """Bilinear look-up with reflection, whose gradient is `_Spread` and so differentiable again."""

    @staticmethod
    def forward(x: Tensor, grid: Tensor) -> Tensor:
        return torch.grid_sampler(x, grid, _BILINEAR, _REFLECTION, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, grid = inputs
        ctx.save_for_backward(grid)
        ctx.shape = x.shape

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (grid,) = ctx.saved_tensors
        return _Spread.apply(gradients[0], grid, ctx.shape), None


class _Spread(torch.autograd.Function):
    """The adjoint of `_LookUp`: adds every looked-up value back to the pixels it came from."""

    @staticmethod
    def forward(y: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        image = y.new_empty(shape)  # only its shape is read
        gradients: tuple[Tensor, Tensor] = torch.ops.aten.grid_sampler_2d_backward(
            y, image, grid, _BILINEAR, _REFLECTION, True, (True, False)
        )
        return gradients[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (grid,) = ctx.saved_tensors
        return _LookUp.apply(gradients[0], grid), None, None


def _source_grid(inverse: Tensor, height: int, width: int) -> Tensor:
    """Return where each position of the doubled output, margin included, comes from.

    Args:
        inverse: (B, 3, 3), see `warp`.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        (B, 2H - 1 + 2 MARGIN, 2W - 1 + 2 MARGIN, 2), (x, y) with -1 and 1 at the centers of the border pixels.
    """
    y, x = (
        (torch.arange(-MARGIN, 2 * n - 1 + MARGIN, dtype=inverse.dtype, device=inverse.device) - (n - 1)) / 2
        for n in (height, width)
    )
    a = inverse[:, :, :, None, None]
    # An axis of one pixel has no other place to look at: any scale does.
    source_x = (a[:, 0, 0] * x + a[:, 0, 1] * y[:, None] + a[:, 0, 2]) * (2 / max(width - 1, 1))
    source_y = (a[:, 1, 0] * x + a[:, 1, 1] * y[:, None] + a[:, 1, 2]) * (2 / max(height - 1, 1))
    return torch.stack([source_x, source_y], dim=-1)


def warp(x: Tensor, inverse: Tensor) -> Tensor:
    """Resample each image by an affine map.

    Args:
        x: images, (B, C, H, W), float32 or float64.
        inverse: (B, 3, 3), of the same dtype: takes an output position (x, y, 1), in pixels from the image's
            center, x to the right and y down, to the input position it shows.

    Returns:
        (B, C, H, W), differentiable with respect to `x` (not to `inverse`).
    """
    height, width = x.shape[2:]
    grid = _source_grid(inverse.detach(), height, width)
    with torch.autocast(x.device.type, enabled=False):
        doubled = doubling(height, x.dtype, x.device) @ x @ doubling(width, x.dtype, x.device).mT
        moved: Tensor = _LookUp.apply(doubled, grid)
        return halving(height, x.dtype, x.device) @ moved @ halving(width, x.dtype, x.device).mT
