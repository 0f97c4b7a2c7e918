"""The narrow types of image autoencoders: what turns images into a grid of features, and a grid into images.

Both are convolutional: they take images of any size that the factor divides, whatever size they are built for.
A network of your own derives from `ImageEncoder` or `ImageDecoder`, calls the base constructor and `check` at the
head of `forward`; everything else in the library then fits it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_gen.networks.base import ImageShape, check_floats, image_shape_of, positive
from lightning_gen.seeding import RandomStream


class ImageEncoder(nn.Module, ABC):
    """Images to a coarser grid of features.

    Args:
        image_shape: `(C, H, W)` of one image.
        out_channels: channels of the features.
        factor: pixels of an image, along each axis, to one place of the grid.

    Raises:
        ValueError: where a number is not positive, or the factor does not divide the size.
    """

    def __init__(self, image_shape: Sequence[int], out_channels: int, factor: int) -> None:
        super().__init__()
        self.image_shape: ImageShape = image_shape_of(self, image_shape)
        self.out_channels = positive(self, "out_channels", out_channels)
        self.factor = positive(self, "factor", factor)
        check_divisible(self, self.image_shape[1:], self.factor)

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the features of one image."""
        return self.image_shape[1] // self.factor, self.image_shape[2] // self.factor

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map images in [-1, 1], `(B, C, H, W)`, to features `(B, out_channels, H / factor, W / factor)`."""

    def check(self, x: Tensor) -> None:
        """Raise a ValueError for images this encoder does not take."""
        check_floats(self, x)
        if x.ndim != 4 or x.shape[1] != self.image_shape[0]:
            raise ValueError(
                f"{type(self).__name__} takes images of shape (B, {self.image_shape[0]}, H, W), not {tuple(x.shape)};"
                " set image_shape to the shape of the data."
            )
        check_divisible(self, x.shape[2:], self.factor)


class ImageDecoder(nn.Module, ABC):
    """A grid of latents to images.

    Args:
        image_shape: `(C, H, W)` of one image.
        in_channels: channels of the latents.
        factor: pixels of an image, along each axis, to one place of the grid.

    Raises:
        ValueError: where a number is not positive, or the factor does not divide the size.
    """

    def __init__(self, image_shape: Sequence[int], in_channels: int, factor: int) -> None:
        super().__init__()
        self.image_shape: ImageShape = image_shape_of(self, image_shape)
        self.in_channels = positive(self, "in_channels", in_channels)
        self.factor = positive(self, "factor", factor)
        check_divisible(self, self.image_shape[1:], self.factor)

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """The weight of the last layer, by which VQGAN balances its losses."""

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Map latents `(B, in_channels, h, w)` to images `(B, C, factor h, factor w)`, nearly in [-1, 1]."""

    def check(self, z: Tensor) -> None:
        """Raise a ValueError for latents this decoder does not take."""
        if z.ndim != 4 or z.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} takes latents of shape (B, {self.in_channels}, h, w), not {tuple(z.shape)}."
            )


class LatentNetwork(nn.Module, ABC):
    """Images to latents and back: all that a model of latents needs of an autoencoder.

    Attributes:
        image_shape: `(C, H, W)` of one image.
        latent_shape: `(c, h, w)` of one latent.
        tileable: whether latents of any size can be decoded.
    """

    image_shape: ImageShape
    latent_shape: ImageShape
    tileable: bool = True

    @abstractmethod
    def encode(self, images: Tensor, stream: RandomStream | None = None) -> Tensor:
        """Map images in [-1, 1], `(B, C, H, W)`, to latents `(B, c, h, w)`.

        Args:
            images: the images.
            stream: where random latents are drawn from; None for the means, or where there is nothing to draw.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Map latents `(B, c, h, w)` to images in [-1, 1], `(B, C, H, W)`."""


def check_divisible(net: nn.Module, size: Sequence[int], factor: int) -> None:
    """Raise a ValueError where a factor does not divide height and width."""
    height, width = size
    if height % factor or width % factor:
        down, across = (max(1, round(side / factor)) * factor for side in (height, width))
        raise ValueError(
            f"{type(net).__name__} halves images down to one {factor}th, and {factor} does not divide {height} x"
            f" {width}: resize or crop the data to {down} x {across} (--data.size), or use fewer halvings."
        )
