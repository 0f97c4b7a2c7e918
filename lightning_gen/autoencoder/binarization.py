r"""Gray images as black and white ones: each pixel is white with its brightness as the probability.

Dynamically, every look at an image is another draw. Statically an image is drawn once for all: whether pixel j is
white is decided by a hash of (the image, j),

.. math:: h_j(x) < x_j / 255, \qquad h_j(x) = H\big(H(j) + \textstyle\sum_i x_i H(i)\big) / 2^{64},

H being the finalizer of SplitMix64 and all sums modulo 2 ** 64. So the same image is the same black and white one in
every epoch, on every process and device, in any order. The published split of binarized MNIST is another draw of the
same distribution: results on the two differ by the chance of the draw.

References:
    On the quantitative analysis of deep belief networks (binarized MNIST)
    https://doi.org/10.1145/1390156.1390266
    Importance Weighted Autoencoders (drawn anew in every epoch)
    https://arxiv.org/abs/1509.00519
    Fast Splittable Pseudorandom Number Generators (the finalizer)
    https://doi.org/10.1145/2660193.2660195
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lightning_gen.autoencoder.hashing import hashed, shifted
from lightning_gen.seeding import RandomStream

Binarization: TypeAlias = Literal["static", "dynamic"]


def dynamic_binary(images: Tensor, stream: RandomStream) -> Tensor:
    """Return a draw of black and white images, -1 or 1, of gray ones `(B, ...)` in [-1, 1]."""
    uniform = stream.uniform(*images.shape[1:]).to(images.device)
    return _signs(uniform < (images.to(uniform.dtype) + 1) / 2, images)


def static_binary(images: Tensor) -> Tensor:
    """Return the black and white images, -1 or 1, that belong to gray ones `(B, ...)`, bytes / 127.5 - 1."""
    flat = images.flatten(1).float().add(1).mul(127.5).round().long()
    of_place = hashed(torch.arange(flat.shape[1], device=flat.device))
    of_image = (flat * of_place).sum(1, keepdim=True)
    drawn = shifted(hashed(of_image + of_place), 40)
    # in whole numbers: 24 bits of the hash against the byte, so that 0 is never white and 255 always
    return _signs((drawn * 255 < flat * 2**24).view_as(images), images)


def _signs(white: Tensor, like: Tensor) -> Tensor:
    return 2 * white.to(like.dtype) - 1
