r"""Images of few values as images of a density: noise as wide as a value, and the bits of both.

With L values evenly in [-1, 1], 256 for bytes, a value v in 0 ... L - 1 becomes

.. math:: x = \frac{2v}{L - 1} - 1 + \frac{2u - 1}{L - 1}, \qquad u \sim U[0, 1),

and the probability of the values is the integral of the density over cells of the width 2 / (L - 1). By Jensen's
inequality the log-density, averaged over u, is at most that log-probability in units of a cell,

.. math:: -\frac{1}{D}\log_2 P(v) \le -\frac{1}{D \ln 2}\,\mathrm E_u \log p(x) + \log_2\frac{L - 1}{2}.

The last term is 6.994 bits for bytes. Of a density that is uniform over the cells the bound is :math:`\log_2 L`.

References:
    A note on the evaluation of generative models
    https://arxiv.org/abs/1511.01844
"""

import math

import torch
from torch import Tensor

from lightning_gen.seeding import RandomStream


def check_levels(levels: int) -> int:
    """Return the number of values L, or raise a ValueError where it is not 2 to 256."""
    if not 2 <= levels <= 256:
        raise ValueError(f"levels is the number of values an image has, 2 to 256 (bytes); given was {levels}.")
    return levels


def to_levels(images: Tensor, levels: int) -> Tensor:
    """Round images to the nearest of L values evenly in [-1, 1].

    Args:
        images: `(B, ...)`; what lies outside of the range is clamped.
        levels: L.
    """
    steps = (levels - 1) / 2
    return ((images.clamp(-1, 1) + 1) * steps).round() / steps - 1


def dequantize(images: Tensor, stream: RandomStream, levels: int = 256) -> Tensor:
    """Spread every value evenly over its width, so that a density of images has a meaning.

    Fewer than 256 values are first put where they belong, for as bytes they lie up to half a byte beside; so are bytes
    in half precision, which become float32.

    Args:
        images: bytes / 127.5 - 1, `(B, ...)`.
        stream: draws where in its width each value lies.
        levels: L, the number of values the images have.

    Raises:
        ValueError: where the images have other values than the L; on the CPU, where looking costs no wait.
    """
    check_levels(levels)
    half = images.dtype in (torch.bfloat16, torch.float16)
    if levels < 256 or half:
        images = _at_levels(images.float() if half else images, levels)
    return images + (2 * stream.uniform(*images.shape[1:]).to(images) - 1) / (levels - 1)


def bits_per_dim(nats: Tensor, dims: int, levels: int | None = 256) -> Tensor:
    """Turn log-densities into bits per dimension.

    Args:
        nats: log-densities of images in [-1, 1], `(B,)`.
        dims: number of dimensions.
        levels: number of values of the images that `dequantize` has spread, whose bits are counted; None for the bits
            of the density itself.
    """
    return -nats / (dims * math.log(2)) + (0.0 if levels is None else math.log2((levels - 1) / 2))


def _at_levels(images: Tensor, levels: int) -> Tensor:
    rounded = to_levels(images, levels)
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        # half a byte, and what half precision rounds off
        off = float((rounded - images).abs().max()) * 127.5 if images.numel() else 0.0
        if off > 0.8:
            raise ValueError(
                f"The images have other values than {levels} evenly in [-1, 1]: one is {off:.1f} bytes beside. Images"
                " that were resized or mixed have all bytes: set levels to 256."
            )
    return rounded
