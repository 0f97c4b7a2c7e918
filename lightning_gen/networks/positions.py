r"""Where patches are: fixed sines and cosines added to the tokens, or rotations of queries and keys.

With the frequencies :math:`f_i = 10000^{-i/n}, i = 0 \ldots n - 1`, a patch in row r and column c has the

- fixed positions :math:`(\sin f c, \cos f c, \sin f r, \cos f r)`, n entries each;
- rotary positions, the angles :math:`(f r, f c)`: entries i and i + 2n of a query or key are turned by the i-th
  of them, so that the product of a query and a key depends on where the patches are to each other alone.

References:
    Attention Is All You Need
    https://arxiv.org/abs/1706.03762
    RoFormer: Enhanced Transformer with Rotary Position Embedding
    https://arxiv.org/abs/2104.09864
"""

from typing import TypeAlias

import torch
from torch import Tensor

Rotation: TypeAlias = tuple[Tensor, Tensor]
_PERIOD = 10000.0


def sincos_positions(rows: int, columns: int, width: int) -> Tensor:
    """Return fixed positions of a grid of patches, row by row.

    The first half of the entries tells the column, the second half the row; each half holds the sines of
    10000^(-i/n), i = 0 ... n - 1, times the index, then the cosines.

    Args:
        rows: height of the grid.
        columns: width of the grid.
        width: number of entries, a multiple of 4.

    Returns:
        `(rows * columns, width)`, float32.
    """
    frequencies = _frequencies(width // 4)
    row, column = _grid(rows, columns)
    angles = [index[:, None] * frequencies for index in (column, row)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], dim=1).float()


def rotary_positions(rows: int, columns: int, width: int) -> Rotation:
    """Return cosines and sines of the angles by which pairs of entries are turned.

    Args:
        rows: height of the grid.
        columns: width of the grid.
        width: number of entries of one head, a multiple of 4.

    Returns:
        Two tensors `(rows * columns, width / 2)`, float32.
    """
    frequencies = _frequencies(width // 4)
    angles = torch.cat([index[:, None] * frequencies for index in _grid(rows, columns)], dim=1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys `(B, heads, N, d)` by the angles of their positions."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    # under autocast the angles are float32, so that only the result is rounded
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


def _frequencies(n: int) -> Tensor:
    return _PERIOD ** -(torch.arange(n, dtype=torch.float64) / n)


def _grid(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    return row.flatten(), column.flatten()
