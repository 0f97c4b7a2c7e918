"""The two narrow types of autoencoders with vector latents: what turns images into numbers, and vectors into images.

An encoder maps images (and class labels, where it is conditional) to a vector that describes a distribution of
latents; a decoder maps latents to the parameters of a distribution of images. How many numbers that takes is the
affair of the module around them, which calls `build` once, before anything else. A network of your own derives from
`LatentEncoder` or `LatentDecoder`, calls the base constructor, makes its last layer in `make` and calls `check` at the
head of `forward`; everything else in the library then fits it.

References:
    Auto-Encoding Variational Bayes
    https://arxiv.org/abs/1312.6114
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_gen.networks.base import ImageShape, check_floats, check_label, image_shape_of, num_classes_of, positive


class LatentEncoder(nn.Module, ABC):
    """Images to vectors.

    Args:
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes K of a conditional encoder, None for an unconditional one.

    Attributes:
        outputs: length of the vector; 0 until `build` was called.

    Raises:
        ValueError: where a number is not positive or the shape is not three numbers.
    """

    outputs: int = 0

    def __init__(self, image_shape: Sequence[int], num_classes: int | None = None) -> None:
        super().__init__()
        self.image_shape: ImageShape = image_shape_of(self, image_shape)
        self.num_classes = num_classes_of(self, num_classes)

    def build(self, outputs: int) -> None:
        """Make the last layer, once.

        Args:
            outputs: length of the vector.

        Raises:
            ValueError: where it was made already, for another length.
        """
        if self.outputs not in (0, outputs):
            raise ValueError(
                f"This {type(self).__name__} was built for {self.outputs} outputs and is asked for {outputs}: make a"
                " new one for every module."
            )
        if not self.outputs:
            self.make(positive(self, "outputs", outputs))
            self.outputs = outputs

    @abstractmethod
    def make(self, outputs: int) -> None:
        """Make the last layer, which gives so many numbers."""

    @abstractmethod
    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map images in [-1, 1], `(B, C, H, W)`, and classes, int64 `(B,)`, to vectors `(B, outputs)`."""

    def check(self, x: Tensor, label: Tensor | None) -> None:
        """Raise a ValueError for images or labels this encoder does not take; see `check_label`."""
        check_floats(self, x)
        if x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            channels, height, width = self.image_shape
            raise ValueError(
                f"{type(self).__name__} takes images of shape (B, {channels}, {height}, {width}), not"
                f" {tuple(x.shape)}; set image_shape to the shape of the data."
            )
        check_label(self, label, self.num_classes, len(x), required=True)


class LatentDecoder(nn.Module, ABC):
    """Vectors to the parameters of a distribution of images.

    Args:
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes K of a conditional decoder, None for an unconditional one.

    Attributes:
        latent_dim: length of the vectors; 0 until `build` was called.
        out_channels: parameters of a pixel; 0 until `build` was called.

    Raises:
        ValueError: where a number is not positive or the shape is not three numbers.
    """

    latent_dim: int = 0
    out_channels: int = 0

    def __init__(self, image_shape: Sequence[int], num_classes: int | None = None) -> None:
        super().__init__()
        self.image_shape: ImageShape = image_shape_of(self, image_shape)
        self.num_classes = num_classes_of(self, num_classes)

    def build(self, latent_dim: int, out_channels: int) -> None:
        """Make the layers, once.

        Args:
            latent_dim: length of the vectors.
            out_channels: parameters of a pixel, all channels together.

        Raises:
            ValueError: where they were made already, for other numbers.
        """
        built = (self.latent_dim, self.out_channels)
        if built not in ((0, 0), (latent_dim, out_channels)):
            raise ValueError(
                f"This {type(self).__name__} was built for latents of length {built[0]} and {built[1]} output channels"
                f" and is asked for {latent_dim} and {out_channels}: make a new one for every module."
            )
        if not self.latent_dim:
            self.make(positive(self, "latent_dim", latent_dim), positive(self, "out_channels", out_channels))
            self.latent_dim, self.out_channels = latent_dim, out_channels

    @abstractmethod
    def make(self, latent_dim: int, out_channels: int) -> None:
        """Make the layers from vectors of this length to so many channels."""

    def start_at(self, params: Tensor) -> None:
        """Begin at these parameters, `(out_channels, H, W)`, whatever the latent: the bias of the last layer.

        Raises:
            ValueError: where the last layer has no bias of its own for every pixel.
        """
        raise ValueError(
            f"{type(self).__name__} has no bias for every pixel to begin at: leave start_at_mean out, or use"
            " MLPDecoder."
        )

    @abstractmethod
    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map latents `(N, latent_dim)` and classes, int64 `(N,)`, to parameters `(N, out_channels, H, W)`."""

    def check(self, z: Tensor, label: Tensor | None) -> None:
        """Raise a ValueError for latents or labels this decoder does not take; see `check_label`."""
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(
                f"{type(self).__name__} takes latents of shape (N, {self.latent_dim}), not {tuple(z.shape)}."
            )
        check_label(self, label, self.num_classes, len(z), required=True)
