"""Convolutional encoder and decoder of vector latents, for images whose sides can be halved.

The encoder halves the maps by strided convolutions (4 x 4, stride 2) while it doubles their number, and has a fully
connected layer on top; the decoder mirrors it by transposed convolutions. Conditional ones append the label, as
constant maps and as a one-hot vector.

References:
    beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (appendix A.1: such networks)
    https://openreview.net/forum?id=Sy2fzU9gl
"""

from torch import Tensor, nn

from lightning_gen.networks.autoencoding import check_divisible
from lightning_gen.networks.base import positive
from lightning_gen.networks.conditioning import concat_label, concat_label_maps
from lightning_gen.networks.latent import LatentDecoder, LatentEncoder
from lightning_gen.networks.mlp import Activation, hidden_layers, make_activation


class ConvEncoder(LatentEncoder):
    """Strided convolutions from an image to a vector.

    Args:
        channels: number of the largest maps; each halving of their sides doubles it.
        halvings: of the sides.
        hidden: units of the fully connected layer behind the convolutions.
        image_shape: `(C, H, W)` of one image; 2 ** halvings divides H and W.
        num_classes: number of classes; None for an unconditional encoder.
        activation: of the hidden layers.

    Raises:
        ValueError: for a value outside its range, or a side that cannot be halved so often.
    """

    def __init__(
        self,
        channels: int = 32,
        halvings: int = 2,
        hidden: int = 256,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int | None = None,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(image_shape, num_classes)
        check_divisible(self, self.image_shape[1:], 2 ** positive(self, "halvings", halvings))
        inputs, layers = self.image_shape[0] + (num_classes or 0), list[nn.Module]()
        for level in range(halvings):
            width = positive(self, "channels", channels) * 2**level
            layers += [nn.Conv2d(inputs, width, 4, stride=2, padding=1), make_activation(activation)]
            inputs = width
        places = (self.image_shape[1] >> halvings) * (self.image_shape[2] >> halvings)
        self.layers = nn.Sequential(*layers, nn.Flatten(), *hidden_layers(self, inputs * places, [hidden], activation))
        self.hidden = hidden

    def make(self, outputs: int) -> None:
        """Make the last layer."""
        self.head = nn.Linear(self.hidden, outputs)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map images `(B, C, H, W)` and labels `(B,)` to vectors `(B, outputs)`."""
        self.check(x, label)
        if self.num_classes is not None and label is not None:
            x = concat_label_maps(x, label, self.num_classes)
        described: Tensor = self.head(self.layers(x))
        return described


class ConvDecoder(LatentDecoder):
    """Transposed convolutions from a vector to an image.

    Args:
        channels: number of the largest maps; each halving of their sides doubles it.
        halvings: of the sides, from the image down to the smallest maps.
        hidden: units of the fully connected layer before the convolutions.
        image_shape: `(C, H, W)` of one image; 2 ** halvings divides H and W.
        num_classes: number of classes; None for an unconditional decoder.
        activation: of the hidden layers.

    Raises:
        ValueError: for a value outside its range, or a side that cannot be halved so often.
    """

    def __init__(
        self,
        channels: int = 32,
        halvings: int = 2,
        hidden: int = 256,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int | None = None,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(image_shape, num_classes)
        check_divisible(self, self.image_shape[1:], 2 ** positive(self, "halvings", halvings))
        self.widths = [positive(self, "channels", channels) * 2**level for level in reversed(range(halvings))]
        self.grid = (self.image_shape[1] >> halvings, self.image_shape[2] >> halvings)
        self.hidden, self.activation = hidden, activation

    def make(self, latent_dim: int, out_channels: int) -> None:
        """Make the layers."""
        inputs, places = latent_dim + (self.num_classes or 0), self.grid[0] * self.grid[1]
        self.project = nn.Sequential(
            *hidden_layers(self, inputs, [self.hidden, self.widths[0] * places], self.activation)
        )
        ups: list[nn.Module] = []
        for width, following in zip(self.widths, [*self.widths[1:], out_channels], strict=True):
            ups += [nn.ConvTranspose2d(width, following, 4, stride=2, padding=1), make_activation(self.activation)]
        self.ups = nn.Sequential(*ups[:-1])

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map latents `(N, latent_dim)` and labels `(N,)` to parameters `(N, out_channels, H, W)`."""
        self.check(z, label)
        if self.num_classes is not None and label is not None:
            z = concat_label(z, label, self.num_classes)
        described: Tensor = self.ups(self.project(z).view(len(z), -1, *self.grid))
        return described
