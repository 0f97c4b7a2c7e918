r"""Pictures that a network is given beside the noisy one: a small version of the image, or its known pixels.

In training a picture is made from the image itself; in sampling it is the user's. The network sees it as further
channels of its input, so that the loss and the solver stay as they are.

References:
    Image Super-Resolution via Iterative Refinement
    https://arxiv.org/abs/2104.07636
    Palette: Image-to-Image Diffusion Models
    https://arxiv.org/abs/2111.05826
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_gen.errors import choose
from lightning_gen.seeding import RandomStream


class Conditioner(ABC):
    """Base class of the conditioners."""

    @abstractmethod
    def channels(self, image_shape: Sequence[int]) -> int:
        """Return the channels C' of the picture for images `(C, H, W)`.

        Raises:
            ValueError: where there is no such picture of images of this shape.
        """

    @abstractmethod
    def __call__(self, x0: Tensor, stream: RandomStream) -> Tensor:
        """Make the pictures of training images.

        Args:
            x0: images in [-1, 1], `(B, C, H, W)`.
            stream: all random numbers.

        Returns:
            `(B, C', H, W)`.
        """

    def given_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape `(C, H, W)` of the picture that a user gives for images `(C, H, W)`."""
        return tuple(image_shape)

    @abstractmethod
    def prepare(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Turn what a user gives into the picture for the network.

        Args:
            image: as the class says.
            mask: as the class says, where it takes one.

        Returns:
            `(B, C', H, W)`.

        Raises:
            ValueError: where it is something else.
        """


class SuperResolution(Conditioner):
    """The image at a lower resolution: averaged over squares, then brought back to full size.

    Args:
        factor: how many times smaller in height and width, 2 or more.
        upsampling: how it is brought back: bilinear or nearest.
        noise: standard deviation of noise put on the small image in training, so that a model stays good on small
            images that are not quite like those it saw.
    """

    def __init__(
        self, factor: int = 2, upsampling: Literal["bilinear", "nearest"] = "bilinear", noise: float = 0.0
    ) -> None:
        if factor < 2:
            raise ValueError(f"SuperResolution takes a factor of 2 or more; given was {factor}.")
        if upsampling not in ("bilinear", "nearest"):
            raise ValueError(f"upsampling is bilinear or nearest; given was {upsampling!r}.")
        if noise < 0:
            raise ValueError(f"noise is a standard deviation, 0 or more; given was {noise}.")
        self.factor, self.upsampling, self.noise = factor, upsampling, noise

    def channels(self, image_shape: Sequence[int]) -> int:
        """Return C; refuse heights and widths that the factor does not divide."""
        channels, height, width = image_shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"SuperResolution(factor={self.factor}) takes images whose height and width it divides; these are"
                f" {height} x {width}. Set another factor, or the data's size."
            )
        return channels

    def __call__(self, x0: Tensor, stream: RandomStream) -> Tensor:
        """Make small pictures, in full size again, `(B, C, H, W)`."""
        self.channels(x0.shape[1:])
        small = F.avg_pool2d(x0, self.factor)
        if self.noise:
            small = small + self.noise * stream.normal(*small.shape[1:]).to(small.dtype)
        return self.prepare(small)

    def given_shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Return `(C, H / factor, W / factor)`."""
        return image_shape[0], image_shape[1] // self.factor, image_shape[2] // self.factor

    def prepare(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Bring small pictures `(B, C, H / factor, W / factor)` in [-1, 1] to full size; there is no mask."""
        _check_picture(image)
        if mask is not None:
            raise ValueError("SuperResolution takes a small picture and no mask; a mask was given.")
        smooth = {"align_corners": False} if self.upsampling == "bilinear" else {}
        return F.interpolate(image, scale_factor=self.factor, mode=self.upsampling, **smooth)


MaskKind = Literal["box", "half", "random_box"]


class InpaintingMask(Conditioner):
    """The known pixels, 0 where unknown, and a channel that is 1 where they are known.

    Args:
        kind: what is unknown: "box", one in the middle; "half", one of the four halves, drawn for each image;
            "random_box", one of any place and size, drawn for each image.
        size: height and width of the box in parts of the image's; of a random one the largest.
        smallest: those of the smallest random box.
    """

    def __init__(self, kind: MaskKind = "random_box", size: float = 0.5, smallest: float = 0.25) -> None:
        self._unknown = choose("mask", kind, {"box": self._box, "half": self._half, "random_box": self._random_box})
        if not 0 < size <= 1 or not 0 < smallest <= 1:
            raise ValueError(f"size and smallest are above 0 and at most 1; given were {size} and {smallest}.")
        if kind == "random_box" and smallest > size:
            raise ValueError(f"smallest is at most size; given were {smallest} and {size}.")
        self.kind, self.size, self.smallest = kind, size, smallest

    def channels(self, image_shape: Sequence[int]) -> int:
        """Return C + 1."""
        return image_shape[0] + 1

    def __call__(self, x0: Tensor, stream: RandomStream) -> Tensor:
        """Hide pixels of each image, `(B, C + 1, H, W)`."""
        return self.join(x0, self.mask(x0, stream))

    def mask(self, x0: Tensor, stream: RandomStream) -> Tensor:
        """Draw masks of images, `(B, 1, H, W)`, 1 where pixels are known."""
        return 1 - self._unknown(x0, stream)[:, None].to(x0.dtype)

    def prepare(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Put pictures and masks together.

        Args:
            image: pictures in [-1, 1], `(B, C, H, W)`; without a mask of its own `(B, C + 1, H, W)`, the last
                channel being the mask.
            mask: 1 where pixels are known and 0 where not, `(B or 1, 1, H, W)`.
        """
        _check_picture(image)
        if mask is None:
            image, mask = image[:, :-1], image[:, -1:]
        shape = (1, *image.shape[2:])
        if image.shape[1] == 0 or tuple(mask.shape[1:]) != shape or mask.shape[0] not in (1, len(image)):
            raise ValueError(
                f"An inpainting model takes a picture (B, C, H, W) and its mask (B, 1, H, W), or both as (B, C + 1, H,"
                f" W); given were {tuple(image.shape)} and {tuple(mask.shape)}."
            )
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("A mask is 1 where pixels are known and 0 where they are not; given were other numbers.")
        return self.join(image, mask.expand(len(image), *shape))

    @staticmethod
    def join(image: Tensor, mask: Tensor) -> Tensor:
        """Return `(B, C + 1, H, W)`: the known pixels, and the mask."""
        mask = mask.to(image)
        # where and not times: what is unknown may be anything, NaN too
        return torch.cat([torch.where(mask == 1, image, 0.0), mask], dim=1)

    def _box(self, x0: Tensor, stream: RandomStream) -> Tensor:
        height, width = x0.shape[2:]
        tall, wide = max(round(self.size * height), 1), max(round(self.size * width), 1)
        unknown = torch.zeros(len(x0), height, width, dtype=torch.bool, device=x0.device)
        top, left = (height - tall) // 2, (width - wide) // 2
        unknown[:, top : top + tall, left : left + wide] = True
        return unknown

    def _half(self, x0: Tensor, stream: RandomStream) -> Tensor:
        height, width = x0.shape[2:]
        which = stream.integers(4)[:, None, None]
        y = torch.arange(height, device=which.device)[:, None]
        x = torch.arange(width, device=which.device)
        first = torch.where(which < 2, y < height // 2, x < width // 2)
        return first == (which % 2 == 0)

    def _random_box(self, x0: Tensor, stream: RandomStream) -> Tensor:
        height, width = x0.shape[2:]
        tall, top, wide, left = stream.uniform(4).float().unbind(1)
        return self._span(height, tall, top)[:, :, None] & self._span(width, wide, left)[:, None, :]

    def _span(self, length: int, share: Tensor, place: Tensor) -> Tensor:
        """Return which of `length` pixels lie in the box, bool `(n, length)`, by numbers `(n,)` in [0, 1)."""
        size = ((self.smallest + share * (self.size - self.smallest)) * length).round().clamp(1, length)
        first = torch.minimum((place * (length - size + 1)).floor(), length - size)
        pixel = torch.arange(length, device=share.device)
        return (pixel >= first[:, None]) & (pixel < (first + size)[:, None])


def _check_picture(image: Tensor) -> None:
    if image.ndim != 4 or not image.is_floating_point():
        raise ValueError(
            f"A picture is of floats in [-1, 1], (B, C, H, W); given was {tuple(image.shape)}, {image.dtype}."
        )
