r"""3x3 convolutions on the CPU by Winograd's minimal filtering, F(4x4, 3x3), forward and backward.

Four outputs y of a three-tap filter w along one axis need six inputs d and, in place of twelve products, six:

.. math:: y = A^\top \left[ (G w) \odot (B^\top d) \right],

with matrices A, B and G of small constants (the points 0, 1, -1, 2, -2 and infinity). Along both axes, tiles of 4x4
pixels take 36 products in place of 144, and the sums over channels are 36 matrix products. The gradient of the
weight is made of the same parts, :math:`G^\top [\sum (A\,dy)\,(B^\top d)^\top]\,G`, that of the input is the
convolution with the flipped weight.

It is the same function but for rounding, about three times that of the direct sum in float32. PyTorch has such
kernels for GPUs; those for CPUs compute the direct sum.

References:
    Fast Algorithms for Convolutional Neural Networks: https://arxiv.org/abs/1509.09308
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as grad_of

_FILTER = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
"""G, from three taps to six."""

_ROWS = 256
"""Rows of a matrix product, tiles of several images or of a band of one: enough for its speed, few enough for the
caches."""

_CHANNELS, _SIDE, _TILES = 128, 8, 64
"""Channels, side and tiles of a batch from which the products saved outweigh the transforms (measured)."""


def _filter_matrix(weight: Tensor, flipped: bool = False) -> Tensor:
    """Return the 36x9 matrix of the transform of a filter, the kernel turned by 180 degrees where asked for."""
    one_axis = weight.new_tensor(_FILTER)
    matrix = torch.kron(one_axis, one_axis)
    return matrix.flip(1) if flipped else matrix


def _transformed_filter(weight: Tensor, flipped: bool = False) -> Tensor:
    """Map a weight `(O, C, 3, 3)` to `(36, O, C)`."""
    outputs, inputs = weight.shape[:2]
    # As a weight with its channels last lies in memory already.
    taps = weight.permute(0, 2, 3, 1).reshape(outputs, 9, inputs)
    return (_filter_matrix(weight, flipped) @ taps).transpose(0, 1)


def _six_inputs(d: Sequence[Tensor], out: Tensor) -> None:
    """Write B'd for six inputs into the first dimension of `out`."""
    p, q = torch.sub(d[4], d[2], alpha=4), torch.sub(d[3], d[1], alpha=4)
    torch.add(p, q, out=out[1])
    torch.sub(p, q, out=out[2])
    torch.sub(d[4], d[2], out=p)
    torch.sub(d[3], d[1], out=q)
    torch.add(p, q, alpha=2, out=out[3])
    torch.sub(p, q, alpha=2, out=out[4])
    torch.sub(d[0], d[2], out=out[0])
    torch.add(p, out[0], alpha=4, out=out[0])
    torch.sub(d[5], d[3], out=out[5])
    out[5].sub_(q, alpha=4)


def _four_outputs(m: Tensor, out: Sequence[Tensor]) -> None:
    """Write A'm, for six products in the first dimension of `m`, into four tensors."""
    p, q = m[1] + m[2], m[3] + m[4]
    torch.add(m[0], p, out=out[0])
    out[0].add_(q)
    torch.add(p, q, alpha=4, out=out[2])
    torch.sub(m[1], m[2], out=p)
    torch.sub(m[3], m[4], out=q)
    torch.add(p, q, alpha=2, out=out[1])
    torch.add(p, q, alpha=8, out=out[3])
    out[3].add_(m[5])


def _six_gradients(y: Sequence[Tensor], out: Tensor) -> None:
    """Write Ay for four outputs into the first dimension of `out`."""
    out[0].copy_(y[0])
    out[5].copy_(y[3])
    p, q = y[0] + y[2], y[1] + y[3]
    torch.add(p, q, out=out[1])
    torch.sub(p, q, out=out[2])
    torch.add(y[0], y[2], alpha=4, out=p)
    torch.add(y[1], y[3], alpha=4, out=q)
    torch.add(p, q, alpha=2, out=out[3])
    torch.sub(p, q, alpha=2, out=out[4])


def _tiles(side: int) -> int:
    return -(-side // 4)


def _transformed_inputs(x: Tensor, band: slice) -> Tensor:
    """Map images `(n, H, W, C)` to `(6, 6, n, tiles, tiles, C)`, rows before columns, for a band of tiles."""
    n, height, width, channels = x.shape
    down, across = 4 * (band.stop - band.start), 4 * _tiles(width)
    first, end = 4 * band.start - 1, 4 * band.stop + 1
    x = x[:, max(first, 0) : end]
    x = F.pad(x, (0, 0, 1, across + 1 - width, max(-first, 0), max(end - height, 0)))
    columns = x.new_empty(6, n, down + 2, across // 4, channels)
    _six_inputs([x[:, :, k : k + across - 3 : 4] for k in range(6)], columns)
    both = x.new_empty(6, 6, n, down // 4, across // 4, channels)
    _six_inputs([columns[:, :, k : k + down - 3 : 4] for k in range(6)], both)
    return both


def _transformed_gradients(y: Tensor, band: slice) -> Tensor:
    """Map gradients `(n, H, W, O)` to `(6, 6, n, tiles, tiles, O)`, rows before columns, for a band of tiles."""
    y = y[:, 4 * band.start : 4 * band.stop]
    n, height, width, channels = y.shape
    down, across = 4 * _tiles(height), 4 * _tiles(width)
    if (down, across) != (height, width):
        y = F.pad(y, (0, 0, 0, across - width, 0, down - height))
    columns = y.new_empty(6, n, down, across // 4, channels)
    _six_gradients([y[:, :, k::4] for k in range(4)], columns)
    both = y.new_empty(6, 6, n, down // 4, across // 4, channels)
    _six_gradients([columns[:, :, k::4] for k in range(4)], both)
    return both


def _write_outputs(products: Tensor, out: Tensor) -> None:
    """Turn `(6, 6, n, tiles, tiles, O)` into images `(n, 4 tiles, 4 tiles, O)`."""
    columns = products.new_empty(4, *products.shape[1:])
    _four_outputs(products, list(columns))
    for row in range(4):
        _four_outputs(columns[row], [out[:, row::4, k::4] for k in range(4)])


def _chunks(images: Tensor) -> Iterator[tuple[slice, slice]]:
    """Part images `(n, H, W, C)`: which images, and which of their rows of tiles."""
    down, across = _tiles(images.shape[1]), _tiles(images.shape[2])
    size, rows = max(1, _ROWS // (down * across)), min(down, max(1, _ROWS // across))
    for start in range(0, len(images), size):
        for top in range(0, down, rows):
            yield slice(start, start + size), slice(top, min(top + rows, down))


def _convolved(x: Tensor, filters: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve `(B, C, H, W)` with filters `(36, C, O)`; the result lies in memory with its channels last."""
    images = x.permute(0, 2, 3, 1)
    batch, height, width, _ = images.shape
    shape = (batch, filters.shape[2], 4 * _tiles(height), 4 * _tiles(width))
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    for chunk, band in _chunks(images):
        inputs = _transformed_inputs(images[chunk], band)
        products = torch.bmm(inputs.flatten(2, 4).flatten(0, 1), filters)
        if bias is not None:
            products[7] += bias  # the product of the point 1 goes into all outputs with factor 1
        written = out[chunk, :, 4 * band.start : 4 * band.stop].permute(0, 2, 3, 1)
        _write_outputs(products.view(*inputs.shape[:-1], -1), written)
    if out.shape[2:] == x.shape[2:]:
        return out
    # A copy and not a view, which autograd would not let be changed in place.
    return out[:, :, :height, :width].clone(memory_format=torch.channels_last)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient `(O, C, 3, 3)`."""
    images, grads = x.permute(0, 2, 3, 1), grad.permute(0, 2, 3, 1)
    total = x.new_zeros(36, grad.shape[1], x.shape[1])
    for chunk, band in _chunks(images):
        inputs = _transformed_inputs(images[chunk], band).flatten(2, 4).flatten(0, 1)
        outputs = _transformed_gradients(grads[chunk], band).flatten(2, 4).flatten(0, 1)
        torch.baddbmm(total, outputs.transpose(1, 2), inputs, out=total)
    taps = _filter_matrix(x).t() @ total.flatten(1)
    return taps.view(3, 3, grad.shape[1], x.shape[1]).permute(2, 3, 0, 1)


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=1)


class Winograd(torch.autograd.Function):
    """The convolution with its gradients; higher derivatives, forward mode and vmap go the direct way."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve `(B, C, H, W)` with `(O, C, 3, 3)`."""
        return _convolved(x, _transformed_filter(weight).transpose(1, 2), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep what the gradients need."""
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.biased = bias is not None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        """Return the gradients of image, weight and bias."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        d_bias = grad.sum(dim=(0, 2, 3)) if wants_bias and ctx.biased else None
        if torch.is_grad_enabled():  # to be differentiated again
            d_x = grad_of.conv2d_input(x.shape, weight, grad, padding=1) if wants_x else None  # type: ignore[no-untyped-call]
            d_weight = grad_of.conv2d_weight(x, weight.shape, grad, padding=1) if wants_weight else None  # type: ignore[no-untyped-call]
            return d_x, d_weight, d_bias
        d_x = _convolved(grad, _transformed_filter(weight, flipped=True), None) if wants_x else None
        return d_x, _weight_gradient(x, grad) if wants_weight else None, d_bias

    @staticmethod
    def jvp(ctx: Any, d_x: Tensor | None, d_weight: Tensor | None, d_bias: Tensor | None) -> Tensor:  # type: ignore[override]
        """Return the derivative along a direction."""
        x, weight = ctx.saved_tensors
        parts = []
        if d_x is not None:
            parts.append(_direct(d_x, weight, None))
        if d_weight is not None:
            parts.append(_direct(x, d_weight, None))
        total = sum(parts[1:], parts[0]) if parts else torch.zeros_like(_direct(x, weight, None))
        return total if d_bias is None else total + d_bias[:, None, None]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Convolve one more dimension of a batch."""
        return torch.vmap(_direct, in_dims=in_dims)(*inputs), 0


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with a border of one zero, by Winograd's algorithm where that is faster.

    That is on the CPU, in float32 or float64, images and channels being large enough and the images in memory with
    their channels last. Everywhere else, and inside a compiled graph, it is PyTorch's convolution.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """Map `(B, inputs, H, W)` to `(B, outputs, H, W)`."""
        if _worthwhile(input, self.weight):
            convolved: Tensor = Winograd.apply(input, self.weight, self.bias)
            return convolved
        return super().forward(input)


def _worthwhile(x: Tensor, weight: Tensor) -> bool:
    if x.device.type != "cpu" or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    batch, _, height, width = x.shape
    return (
        min(weight.shape[:2]) >= _CHANNELS
        and min(height, width) >= _SIDE
        and batch * _tiles(height) * _tiles(width) >= _TILES
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and x.stride(1) == 1  # channels last; more cannot be asked inside vmap
    )
