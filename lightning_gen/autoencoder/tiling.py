r"""Decoding and encoding tile by tile: large images in the memory of small ones.

Tiles that overlap are each given to the function, and what comes out is blended,

.. math:: y(p) = \sum_k w_k(p)\, f(x|_k)(p), \qquad \sum_k w_k(p) = 1,

where along each axis the weight of a tile is 0 on its border towards a neighbor, then rises linearly through the rest
of what the two share. A function that is local, as convolutions are, is right but at the borders of a tile, as far as
it sees: where that is no farther than the border of weight 0, the result is the function of the whole image. Where it
sees farther, by attention or normalization, tiles differ a little, and blending hides their edges.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (appendix D: large images)
    https://arxiv.org/abs/2112.10752
"""

from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor


class _Span(NamedTuple):
    """One tile along one axis.

    Attributes:
        start: in units of the grid that input and output have in common.
        length: in the same units.
        weights: of its places in the output, which sum to 1 with those of other tiles.
    """

    start: int
    length: int
    weights: Tensor


class Tiling:
    """How images are parted.

    Args:
        tile: side of a tile in pixels of what the function is given, at most; a smaller image is not parted.
        overlap: pixels that neighbors share.
        context: pixels at a border between tiles that are computed and not taken; null for a quarter of the overlap,
            rounded down. With half of it there is no blending left.

    Raises:
        ValueError: for an overlap that is not below the tile, or a context above half the overlap.
    """

    def __init__(self, tile: int, overlap: int, context: int | None = None) -> None:
        if tile < 1 or not 0 <= overlap < tile:
            raise ValueError(
                f"Tiling takes a tile of 1 pixel or more and an overlap from 0 to below it, not {tile} and {overlap}."
            )
        if context is not None and not 0 <= 2 * context <= overlap:
            raise ValueError(f"Tiling takes a context from 0 to half the overlap of {overlap}, not {context}.")
        self.tile, self.overlap, self.context = tile, overlap, context

    def __call__(self, function: Callable[[Tensor], Tensor], x: Tensor, factor: int | float | Fraction = 1) -> Tensor:
        """Apply a function tile by tile; see `tiled`."""
        return tiled(function, x, self.tile, self.overlap, factor, self.context)


@torch.no_grad()
def tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: int,
    overlap: int,
    factor: int | float | Fraction = 1,
    context: int | None = None,
) -> Tensor:
    """Apply a function of images tile by tile, without gradients.

    Beside the result, which is written into as the tiles come, one tile is in memory.

    Args:
        function: maps `(B, C, h, w)` to `(B, C', factor h, factor w)`, for any h and w up to the tile.
        x: `(B, C, H, W)`, of any size.
        tile: side of a tile in pixels of x, at most.
        overlap: pixels of x that neighbors share.
        factor: pixels of the result to one of x: 8 to decode KL-f8, 1 / 8 to encode, where everything is in eights.
        context: pixels of x at a border between tiles that are not taken; None for a quarter of the overlap. The
            result is exact where the function sees no farther.

    Returns:
        `(B, C', factor H, factor W)`, in float32 or wider.

    Raises:
        ValueError: for numbers that do not fit together, or a function that makes images of another size.
    """
    Tiling(tile, overlap, context)  # refuses numbers that do not fit together
    ratio = Fraction(factor).limit_denominator(1 << 16)
    if ratio <= 0:
        raise ValueError(f"tiled takes a factor above 0, not {factor}.")
    unit = ratio.denominator
    tiling = Tiling(tile, overlap, overlap // (4 * unit) * unit if context is None else context)
    _check_units(x, tiling, unit)
    down, across = (_spans(side // unit, tiling, unit, ratio.numerator, x) for side in x.shape[2:])
    result = None
    for row in down:
        for column in across:
            height, width = row.length * ratio.numerator, column.length * ratio.numerator
            made = function(x[(..., _cut(row, unit), _cut(column, unit))])
            if made.shape[:1] != x.shape[:1] or tuple(made.shape[2:]) != (height, width):
                raise ValueError(
                    f"tiled with factor={factor} expects {height} x {width} pixels of a tile"
                    f" {row.length * unit} x {column.length * unit}, and the function made {tuple(made.shape)}."
                )
            if result is None:
                size = (side * ratio.numerator // unit for side in x.shape[2:])
                precise = torch.promote_types(made.dtype, torch.float32)
                result = made.new_zeros(*made.shape[:2], *size, dtype=precise)
            place = result[(..., _cut(row, ratio.numerator), _cut(column, ratio.numerator))]
            place.addcmul_(made.to(place.dtype), torch.outer(row.weights, column.weights).to(place.dtype))
    if result is None:
        raise ValueError(f"tiled takes images of one pixel or more, not {tuple(x.shape)}.")
    return result


def _check_units(x: Tensor, tiling: Tiling, unit: int) -> None:
    if x.ndim != 4:
        raise ValueError(f"tiled takes images (B, C, H, W), not {tuple(x.shape)}.")
    numbers = {"height": x.shape[2], "width": x.shape[3], "tile": tiling.tile}
    numbers |= {"overlap": tiling.overlap, "context": tiling.context or 0}
    wrong = [f"{name}={value}" for name, value in numbers.items() if value % unit]
    if wrong:
        raise ValueError(
            f"tiled with a factor in parts of {unit} takes numbers that {unit} divides, not {', '.join(wrong)}."
        )


def _cut(span: _Span, unit: int) -> slice:
    return slice(span.start * unit, (span.start + span.length) * unit)


def _spans(side: int, tiling: Tiling, unit: int, scale: int, x: Tensor) -> list[_Span]:
    """Part one axis into as few tiles as go, all nearly as long, neighbors sharing the overlap."""
    tile, overlap, context = (number // unit for number in (tiling.tile, tiling.overlap, tiling.context or 0))
    count = 1 if side <= tile else -(-(side - overlap) // (tile - overlap))
    total = side + (count - 1) * overlap
    ends = [total * index // count for index in range(count + 1)]
    starts = [ends[index] - index * overlap for index in range(count)]
    lengths = [ends[index + 1] - ends[index] for index in range(count)]
    raw = []
    for index, length in enumerate(lengths):
        places = torch.arange(length * scale, dtype=torch.float64, device=x.device) + 0.5
        weight = torch.ones_like(places)
        for at_border, distance in ((index > 0, places), (index < count - 1, places.flip(0))):
            if at_border:
                weight = weight * _rise(distance, context * scale, (overlap - 2 * context) * scale)
        raw.append(weight)
    # more than two tiles may share a place where the overlap is long
    sums = torch.zeros(side * scale, dtype=torch.float64, device=x.device)
    for start, weight in zip(starts, raw, strict=True):
        sums[start * scale : start * scale + len(weight)] += weight
    return [
        _Span(start, length, weight / sums[start * scale : start * scale + len(weight)])
        for start, length, weight in zip(starts, lengths, raw, strict=True)
    ]


def _rise(distance: Tensor, context: int, ramp: int) -> Tensor:
    """Return 0 up to the context, then a line up to 1 over the ramp, at distances from the border of a tile."""
    if ramp == 0:
        return (distance > context).to(distance.dtype)
    return ((distance - context) / ramp).clamp(0, 1)
