r"""Images between the bytes of a file and the range of a network.

Bytes become floats by :math:`x = b / 127.5 - 1`, floats become bytes by rounding
:math:`127.5\,(x + 1)`, clamped to [0, 255]. The two are inverse on all 256 bytes. Truncation, which
darkens every image by half a step and wraps what lies outside [-1, 1], is never used.
"""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lightning_gen.files import written_whole


def from_uint8(images: Tensor) -> Tensor:
    """Turn bytes in [0, 255] into float32 in [-1, 1].

    Raises:
        ValueError: where the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"Images as bytes have dtype uint8, these have {images.dtype}.")
    return images.float().div_(127.5).sub_(1.0)


def to_uint8(images: Tensor) -> Tensor:
    """Turn floats in [-1, 1] into bytes by rounding; what lies outside the range is clamped.

    Raises:
        ValueError: where the images are not floating point or hold a NaN.
    """
    if not images.is_floating_point():
        raise ValueError(f"Images in [-1, 1] have a floating-point dtype, these have {images.dtype}.")
    if torch.isnan(images).any():
        raise ValueError("The images hold NaN: the network that made them has diverged.")
    return images.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def image_grid(images: Tensor, columns: int | None = None, padding: int = 2) -> Tensor:
    """Lay images out in rows.

    Args:
        images: bytes, `(B, C, H, W)`.
        columns: images in a row; the square root of their number, rounded up, where it is not given.
        padding: pixels of black between neighbours and around.

    Returns:
        One image of bytes, `(C, H', W')`.
    """
    count, channels, height, width = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    grid = images.new_zeros(channels, rows * (height + padding) + padding, columns * (width + padding) + padding)
    for index, image in enumerate(images):
        top = padding + (index // columns) * (height + padding)
        left = padding + (index % columns) * (width + padding)
        grid[:, top : top + height, left : left + width] = image
    return grid


def enlarge(image: Tensor, at_least: int = 512) -> Tensor:
    """Repeat each pixel a whole number of times, so that the longer side has at least so many pixels."""
    factor = max(1, math.ceil(at_least / max(image.shape[-2:])))
    return image.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def picture(image: Tensor) -> Image.Image:
    """Make a Pillow image of bytes `(C, H, W)`, C being 1 or 3."""
    pixels = image.cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels.squeeze(2) if len(image) == 1 else pixels)


def write_png(path: str | Path, image: Tensor) -> None:
    """Write one image of bytes `(C, H, W)`, C being 1 or 3, whole or not at all."""
    with written_whole(path) as partial:
        picture(image).save(partial, format="PNG")
