"""The convolutional encoder and decoder of VQ-VAE, for images of any size that halves often enough.

The encoder halves by convolutions (4 x 4, stride 2), the first of half the width, and ends in a 3 x 3 convolution and
residual blocks; a 1 x 1 convolution makes the features. The decoder mirrors it: a 3 x 3 convolution, residual blocks,
and transposed convolutions (4 x 4, stride 2), the last but one to half the width. A residual block adds to x what
ReLU, a 3 x 3 convolution, ReLU and a 1 x 1 convolution make of it. There is no normalization.

Widths as published: 256 and 256 inside blocks (VQ-VAE), 128 and 64 (VQ-VAE-2).

References:
    Neural Discrete Representation Learning (section 4.1)
    https://arxiv.org/abs/1711.00937
    Generating Diverse High-Fidelity Images with VQ-VAE-2 (appendix A)
    https://arxiv.org/abs/1906.00446
"""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.networks.autoencoding import ImageDecoder, ImageEncoder
from lightning_gen.networks.base import positive


class ResidualBlock(nn.Module):
    """x plus what two convolutions make of it.

    Args:
        channels: of x.
        inner: channels between the convolutions.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, channels, H, W)` to the same shape."""
        out: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))
        return out


class VQVAEEncoder(ImageEncoder):
    """Strided convolutions and residual blocks.

    Args:
        image_shape: `(C, H, W)` of one image; H and W divisible by the factor.
        out_channels: channels of the features: those that the bottleneck takes.
        channels: width, even.
        factor: pixels along each axis to one place of the grid: 1, 2, 4, 8 ...
        blocks: residual blocks.
        block_channels: width inside a block.

    Raises:
        ValueError: for a number out of range, or a size that does not halve that often.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        out_channels: int = 64,
        channels: int = 128,
        factor: int = 4,
        blocks: int = 2,
        block_channels: int = 64,
    ) -> None:
        super().__init__(image_shape, out_channels, factor)
        sizes = _checked(self, channels, blocks, block_channels)
        self.layers = encoder_layers(self.image_shape[0], self.out_channels, _halvings(self, self.factor), *sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `(B, C, H, W)` to features; see `ImageEncoder.forward`."""
        self.check(x)
        features: Tensor = self.layers(x)
        return features


class VQVAEDecoder(ImageDecoder):
    """Residual blocks and transposed convolutions. Nothing bounds the images.

    Args:
        image_shape: `(C, H, W)` of one image; H and W divisible by the factor.
        in_channels: channels of the latents: those that the bottleneck makes.
        channels: width, even.
        factor: pixels along each axis to one place of the grid: 1, 2, 4, 8 ...
        blocks: residual blocks.
        block_channels: width inside a block.

    Raises:
        ValueError: for a number out of range, or a size that does not halve that often.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 32, 32),
        in_channels: int = 64,
        channels: int = 128,
        factor: int = 4,
        blocks: int = 2,
        block_channels: int = 64,
    ) -> None:
        super().__init__(image_shape, in_channels, factor)
        sizes = _checked(self, channels, blocks, block_channels)
        self.layers = decoder_layers(self.in_channels, self.image_shape[0], _halvings(self, self.factor), *sizes)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last convolution."""
        return cast(nn.Parameter, self.layers[-1].weight)

    def forward(self, z: Tensor) -> Tensor:
        """Map latents `(B, in_channels, h, w)` to images; see `ImageDecoder.forward`."""
        self.check(z)
        images: Tensor = self.layers(z)
        return images


def encoder_layers(
    inputs: int, outputs: int, halvings: int, channels: int, blocks: int, block_channels: int
) -> nn.Sequential:
    """Return layers from `(B, inputs, H, W)` to `(B, outputs, H / 2^halvings, W / 2^halvings)`."""
    layers: list[nn.Module] = []
    width = inputs
    for level in range(halvings):
        after = channels // 2 if level == 0 and halvings > 1 else channels
        layers += [nn.Conv2d(width, after, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
        width = after
    layers.append(nn.Conv2d(width, channels, 3, padding=1))
    layers += [ResidualBlock(channels, block_channels) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(channels, outputs, 1))


def decoder_layers(
    inputs: int, outputs: int, halvings: int, channels: int, blocks: int, block_channels: int
) -> nn.Sequential:
    """Return layers from `(B, inputs, h, w)` to `(B, outputs, 2^halvings h, 2^halvings w)`, a convolution at last."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, channels, 3, padding=1)]
    layers += [ResidualBlock(channels, block_channels) for _ in range(blocks)]
    layers.append(nn.ReLU())
    width = channels
    for level in range(halvings - 1):
        after = channels // 2 if level == halvings - 2 else channels
        layers += [upward(width, after), nn.ReLU(inplace=True)]
        width = after
    layers.append(upward(width, outputs) if halvings else nn.Conv2d(width, outputs, 3, padding=1))
    return nn.Sequential(*layers)


def upward(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    """Return the transposed convolution that doubles height and width."""
    return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)


def _checked(net: nn.Module, channels: int, blocks: int, block_channels: int) -> tuple[int, int, int]:
    if channels % 2:
        raise ValueError(f"{type(net).__name__} takes an even number as channels, not {channels!r}.")
    sizes = {"channels": channels, "blocks": blocks, "block_channels": block_channels}
    width, depth, inner = (positive(net, name, value) for name, value in sizes.items())
    return width, depth, inner


def _halvings(net: nn.Module, factor: int) -> int:
    if factor & (factor - 1):
        below = 2 ** (factor.bit_length() - 1)
        raise ValueError(
            f"{type(net).__name__} halves, so its factor is 1, 2, 4, 8 ..., not {factor}: take {below} or {2 * below}."
        )
    return factor.bit_length() - 1
