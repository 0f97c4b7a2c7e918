r"""Perceptual losses of reconstructions: LPIPS, and the Laplacian pyramid, which needs no file.

With :math:`L^j(x)` the levels of an image's Laplacian pyramid, the last one being what the others leave,

.. math::
    \mathrm{Lap}_1(x, y) = \frac 1 D \sum_j 2^{2j}\,\lVert L^j(x) - L^j(y) \rVert_1, \qquad
    L^j = G^j - \mathrm{expand}(G^{j+1}), \qquad G^{j+1} = \mathrm{reduce}(G^j), \qquad G^0 = x,

reduce and expand being by the kernel (1, 4, 6, 4, 1) / 16 along each axis. A level has a quarter of the pixels of the
one before, so that every level counts alike; D, the number of an image's dimensions, makes the sum one of means.

References:
    Optimizing the Latent Space of Generative Networks (GLO; section 2: Lap1, a sum, without D)
    https://arxiv.org/abs/1707.05776
    The Laplacian Pyramid as a Compact Image Code
    https://doi.org/10.1109/TCOM.1983.1095851
"""

import logging
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.errors import MissingData, choose
from lightning_gen.metrics.lpips import LPIPS, SMALLEST
from lightning_gen.metrics.perceptual import PerceptualLoss

__all__ = ["LPIPS", "LaplacianPyramid", "PerceptualLoss", "PerceptualName", "laplacian_pyramid", "perceptual_loss"]

PerceptualName: TypeAlias = Literal["lpips", "laplacian", "auto"]

logger = logging.getLogger(__name__)
_KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_said: set[str] = set()


class LaplacianPyramid(PerceptualLoss):
    """Lap1: the mean absolute difference of every level of the two pyramids, added up.

    Args:
        levels: levels before the last one, at most; as many as there are halvings down to a side of one pixel.

    Raises:
        ValueError: where it is not positive.
    """

    def __init__(self, levels: int = 4) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"LaplacianPyramid: levels is 1 or more; given was {levels}.")
        self.levels, self.name = levels, f"laplacian-{levels}"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances `(B,)` of images in [-1, 1], `(B, C, H, W)`, of any size."""
        self.check(x, y)
        # the pyramid is linear: that of the difference is the difference of the two
        difference = (x - y).to(torch.promote_types(x.dtype, torch.float32))
        each = [
            (4.0**j / difference[0].numel()) * level.abs().flatten(1).sum(1)
            for j, level in enumerate(laplacian_pyramid(difference, self.levels))
        ]
        return torch.stack(each).sum(0)


def laplacian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """Take images apart, from the finest level to what the others leave.

    Args:
        images: `(B, C, H, W)`.
        levels: before the last one, at most; there are fewer where a side would be less than one pixel.

    Returns:
        Levels `(B, C, H, W)`, `(B, C, H/2, W/2)`, ..., sides rounded up.
    """
    pyramid = []
    for _ in range(levels):
        if min(images.shape[2:]) < 2:
            break
        reduced = _reduce(images)
        pyramid.append(images - _expand(reduced, images.shape[2:]))
        images = reduced
    return [*pyramid, images]


def _reduce(images: Tensor) -> Tensor:
    """Blur, and keep every second pixel; the border is repeated."""
    batch, channels, height, width = images.shape
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    reduced = F.conv2d(padded.flatten(0, 1)[:, None], _kernel(images, 1), stride=2)
    return reduced.view(batch, channels, (height + 1) // 2, (width + 1) // 2)


def _expand(images: Tensor, size: Sequence[int]) -> Tensor:
    """Put zeros between the pixels, and blur so that a constant stays what it is; the border is repeated."""
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    expanded = F.conv_transpose2d(padded.flatten(0, 1)[:, None], _kernel(images, 2), stride=2)
    height, width = size
    # four more pixels at the front: two of the pixel repeated, two of the kernel
    return expanded[:, :, 4 : 4 + height, 4 : 4 + width].view(*images.shape[:2], height, width)


def _kernel(images: Tensor, factor: int) -> Tensor:
    """Return the kernel times a factor along each axis, `(1, 1, 5, 5)`."""
    one_axis = factor * images.new_tensor(_KERNEL)
    return torch.outer(one_axis, one_axis)[None, None]


def perceptual_loss(
    loss: PerceptualName | PerceptualLoss | None, image_shape: Sequence[int] | None = None
) -> PerceptualLoss | None:
    """Look up a perceptual loss.

    Args:
        loss: "lpips", "laplacian", or "auto": LPIPS where it can be, else the Laplacian pyramid, which is said. An
            object, or None, is returned as it is.
        image_shape: `(C, H, W)` of the images, to know whether they are too small for LPIPS.

    Raises:
        MissingData: for "lpips" where its weights are not there.
        ValueError: for an unknown name.
    """
    if loss is None or isinstance(loss, PerceptualLoss):
        return loss
    makers: dict[str, Callable[[], PerceptualLoss]] = {
        "lpips": LPIPS,
        "laplacian": LaplacianPyramid,
        "auto": lambda: _whichever(image_shape),
    }
    return choose("perceptual loss", loss, makers)()


def _whichever(image_shape: Sequence[int] | None) -> PerceptualLoss:
    if image_shape is not None and (image_shape[0] not in (1, 3) or min(image_shape[1:]) < SMALLEST):
        made: PerceptualLoss = LaplacianPyramid()
        why = f"images of {' x '.join(map(str, image_shape))} are none for LPIPS."
    else:
        try:
            made, why = LPIPS(), ""
        except MissingData as error:
            made, why = LaplacianPyramid(), str(error)
    text = f"The perceptual loss is {made.name}{': ' if why else '.'}{why}"
    if text not in _said:
        _said.add(text)
        logger.log(logging.WARNING if why else logging.INFO, text)
    return made
