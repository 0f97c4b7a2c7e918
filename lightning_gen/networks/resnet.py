"""The residual networks of SNGAN, WGAN-GP and the projection discriminator, for images of side 28, 32 and 64.

Generator block: x -> norm, ReLU, upsampling, 3 x 3 convolution, norm, ReLU, 3 x 3 convolution, added to a
1 x 1 convolution of the upsampled x. Discriminator block: x -> ReLU, 3 x 3 convolution, ReLU, 3 x 3
convolution, average pooling, added to a pooled 1 x 1 convolution of x, or to x itself where neither side nor
width changes. The first block has no leading ReLU, since its input is an image.

One pair of classes, three papers, in the settings of mimicry's published CIFAR-10 scores:

- SNGAN: `ResNetDiscriminator(spectral_norm=True)`, features summed over positions.
- WGAN-GP: `ResNetDiscriminator(spectral_norm=False, pooling="mean")`. The critic has no normalization at all:
  a penalty on each sample's gradient forbids batch norm.
- cGAN with projection: `conditioning="cbn"` in the generator and "projection" in the discriminator, whose
  embedding is spectrally normalized too.

Weights start Xavier-uniform, with gain sqrt(2) in the residual branches and 1 elsewhere; biases start at 0.

References:
    Spectral normalization for generative adversarial networks: https://arxiv.org/abs/1802.05957
    Improved training of Wasserstein GANs: https://arxiv.org/abs/1704.00028
    cGANs with projection discriminator: https://arxiv.org/abs/1802.05637
    Mimicry: https://arxiv.org/abs/2005.02494
"""

import itertools
import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.errors import choose
from lightning_gen.networks.base import (
    Discriminator,
    DiscriminatorOutput,
    Generator,
    check_conditioning,
    positive,
    square_size,
)
from lightning_gen.networks.conditioning import (
    DiscriminatorConditioning,
    GeneratorConditioning,
    apply_norm,
    concat_label,
    concat_label_maps,
    make_generator_norm,
    make_head,
)
from lightning_gen.networks.normalization import spectral_normalize

Upsampling: TypeAlias = Literal["bilinear", "nearest"]
Pooling: TypeAlias = Literal["sum", "mean"]


class _Stack(NamedTuple):
    """The layer table of one side: widths are the published one, divided by these numbers."""

    bottom: int
    generator_width: int
    generator: tuple[int, ...]
    discriminator_width: int
    discriminator: tuple[int, ...]
    halvings: int


_STACKS = {
    28: _Stack(7, 256, (1, 1, 1), 128, (1, 1, 1, 1), 2),
    32: _Stack(4, 256, (1, 1, 1, 1), 128, (1, 1, 1, 1), 2),
    64: _Stack(4, 1024, (1, 2, 4, 8, 16), 1024, (16, 8, 4, 2, 1), 5),
}


def _divided(net: nn.Module, channels: int, divisors: tuple[int, ...]) -> list[int]:
    channels = positive(net, "channels", channels)
    if channels % max(divisors):
        raise ValueError(
            f"{type(net).__name__} at this image size takes a multiple of {max(divisors)} as channels, not {channels}."
        )
    return [channels // divisor for divisor in divisors]


def _init(layer: nn.Conv2d | nn.Linear | nn.Embedding, gain: float = 1.0) -> None:
    nn.init.xavier_uniform_(layer.weight, gain)
    if not isinstance(layer, nn.Embedding) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


class GeneratorBlock(nn.Module):
    """Residual block that doubles the side of its maps.

    Args:
        inputs: number of maps that come in.
        outputs: number of maps that go out.
        num_classes: number of classes of a conditional batch norm; None for a plain one.
        upsampling: how the maps are enlarged.
    """

    def __init__(
        self, inputs: int, outputs: int, num_classes: int | None = None, upsampling: Upsampling = "bilinear"
    ) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.norm1 = make_generator_norm("batch", inputs, num_classes)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = make_generator_norm("batch", outputs, num_classes)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        _init(self.conv1, math.sqrt(2))
        _init(self.conv2, math.sqrt(2))
        _init(self.shortcut)

    def _up(self, x: Tensor) -> Tensor:
        align = False if self.upsampling == "bilinear" else None
        return F.interpolate(x, scale_factor=2, mode=self.upsampling, align_corners=align)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map `(B, inputs, H, W)` to `(B, outputs, 2H, 2W)`."""
        h = F.relu(apply_norm(self.norm1, x, label), inplace=True)
        h = self.conv1(self._up(h))
        h = F.relu(apply_norm(self.norm2, h, label), inplace=True)
        # A 1 x 1 convolution commutes with interpolation (whose weights sum to 1): before it costs a quarter.
        out: Tensor = self.conv2(h) + self._up(self.shortcut(x))
        return out


class DiscriminatorBlock(nn.Module):
    """Residual block that may halve the side of its maps; without normalization.

    Args:
        inputs: number of maps that come in.
        outputs: number of maps that go out.
        downsample: whether the side is halved.
        first: whether the block reads the image, and so has no leading ReLU.
    """

    def __init__(self, inputs: int, outputs: int, downsample: bool, first: bool = False) -> None:
        super().__init__()
        self.downsample = downsample
        self.first = first
        self.conv1 = nn.Conv2d(inputs, outputs if first else inputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs if first else inputs, outputs, 3, padding=1)
        learned = downsample or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if learned else nn.Identity()
        _init(self.conv1, math.sqrt(2))
        _init(self.conv2, math.sqrt(2))
        if isinstance(self.shortcut, nn.Conv2d):
            _init(self.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, inputs, H, W)` to `(B, outputs, H, W)`, or to half the side."""
        # Not in place: the shortcut takes x as it was, before the ReLU.
        h = x if self.first else F.relu(x)
        h = self.conv2(F.relu(self.conv1(h), inplace=True))
        if self.downsample:
            # Pooling commutes with the shortcut's 1 x 1 convolution: before it costs a quarter.
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        out: Tensor = h + self.shortcut(x)
        return out


class ResNetGenerator(Generator):
    """Residual generator of SNGAN, WGAN-GP and cGANs with projection.

    Args:
        latent_dim: length of one latent vector.
        channels: number of the smallest maps; None for the published 256 (side 28 and 32, the same at every
            level) or 1024 (side 64, halved at every level).
        image_shape: `(C, H, W)` of one image, H = W in 28, 32, 64.
        num_classes: number of classes; None for an unconditional generator.
        conditioning: "none", "concat" (one-hot label joined to the latent) or "cbn" (conditional batch norm
            in the blocks; the last norm is a plain one, as published).
        upsampling: "bilinear" as in mimicry, or "nearest" as in the papers' code.

    Raises:
        ValueError: for another side, a value outside its range, or classes without conditioning.
    """

    def __init__(
        self,
        latent_dim: int = 128,
        channels: int | None = None,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int | None = None,
        conditioning: GeneratorConditioning = "none",
        upsampling: Upsampling = "bilinear",
    ) -> None:
        super().__init__(latent_dim, image_shape, num_classes)
        check_conditioning(self, conditioning, ("none", "concat", "cbn"), num_classes)
        choose("upsampling", upsampling, {"bilinear": None, "nearest": None})
        stack = _STACKS[square_size(self, self.image_shape, _STACKS)]
        self.conditioning = conditioning
        self.bottom = stack.bottom
        widths = _divided(self, stack.generator_width if channels is None else channels, stack.generator)
        inputs = latent_dim + (num_classes or 0) * (conditioning == "concat")
        classes = num_classes if conditioning == "cbn" else None
        self.project = nn.Linear(inputs, widths[0] * self.bottom**2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(before, after, classes, upsampling) for before, after in itertools.pairwise(widths)
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.to_image = nn.Conv2d(widths[-1], self.image_shape[0], 3, padding=1)
        _init(self.project)
        _init(self.to_image)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Make images `(B, C, H, W)` in [-1, 1] of latents `(B, latent_dim)` and labels `(B,)`."""
        self.check(z, label)
        if self.conditioning == "concat" and self.num_classes is not None and label is not None:
            z = concat_label(z, label, self.num_classes)
        h: Tensor = self.project(z)
        h = h.view(len(z), -1, self.bottom, self.bottom)
        for block in self.blocks:
            h = block(h, label)
        return torch.tanh(self.to_image(F.relu(self.norm(h), inplace=True)))


class ResNetDiscriminator(Discriminator):
    """Residual discriminator of SNGAN and cGANs with projection, and critic of WGAN-GP.

    Args:
        channels: number of the smallest maps; None for the published 128 (side 28 and 32, the same at every
            level) or 1024 (side 64, doubled at every level from a sixteenth).
        image_shape: `(C, H, W)` of one image, H = W in 28, 32, 64.
        num_classes: number of classes; None for an unconditional discriminator.
        conditioning: "none", "concat" (label maps as channels), "projection" or "auxiliary".
        spectral_norm: whether every layer is spectrally normalized (SNGAN), or none (WGAN-GP).
        pooling: of the last maps over positions, "sum" (SNGAN) or "mean" (WGAN-GP).

    Raises:
        ValueError: for another side, a value outside its range, or classes without conditioning.
    """

    def __init__(
        self,
        channels: int | None = None,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int | None = None,
        conditioning: DiscriminatorConditioning = "none",
        spectral_norm: bool = True,
        pooling: Pooling = "sum",
    ) -> None:
        super().__init__(image_shape, num_classes, auxiliary=conditioning == "auxiliary")
        check_conditioning(self, conditioning, ("none", "concat", "projection", "auxiliary"), num_classes)
        choose("pooling", pooling, {"sum": None, "mean": None})
        stack = _STACKS[square_size(self, self.image_shape, _STACKS)]
        self.conditioning = conditioning
        self.pooling = pooling
        inputs = self.image_shape[0] + (num_classes or 0) * (conditioning == "concat")
        width = stack.discriminator_width if channels is None else channels
        widths = [inputs, *_divided(self, width, stack.discriminator)]
        self.blocks = nn.Sequential(
            *(
                DiscriminatorBlock(before, after, downsample=level < stack.halvings, first=level == 0)
                for level, (before, after) in enumerate(itertools.pairwise(widths))
            )
        )
        self.head = make_head(conditioning, widths[-1], num_classes)
        for layer in self.head.children():
            if isinstance(layer, nn.Linear | nn.Embedding):
                _init(layer)
        if spectral_norm:
            spectral_normalize(self)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor | DiscriminatorOutput:
        """Judge images `(B, C, H, W)` in [-1, 1] with labels `(B,)`; see `Discriminator.forward`."""
        self.check(x, label)
        if self.conditioning == "concat" and self.num_classes is not None and label is not None:
            x = concat_label_maps(x, label, self.num_classes)
        h = F.relu(self.blocks(x), inplace=True)
        h = h.sum((2, 3)) if self.pooling == "sum" else h.mean((2, 3))
        output: Tensor | DiscriminatorOutput = self.head(h, label)
        return output
