r"""The convolutional encoder and decoder of VQGAN and of latent diffusion (KL-f4, KL-f8).

The encoder passes levels of residual blocks, each level at half the height and width of the one before, then a middle
of two blocks with attention between them, and ends in

.. math:: \mathrm{features} = W\,\mathrm{conv}_{3 \times 3}(\mathrm{silu}(\mathrm{norm}(h))),

W being a 1x1 convolution where asked for. The decoder mirrors it, with a 1x1 convolution of its own before the first
3x3, one block more a level, and doublings by nearest neighbors. With 128 channels, multipliers (1, 2, 4, 4), 2 blocks
and 4 channels of a latent they are the 83,653,863 parameters of Stable Diffusion's autoencoder.

References:
    Taming Transformers for High-Resolution Image Synthesis (VQGAN; table 7)
    https://arxiv.org/abs/2012.09841
    High-Resolution Image Synthesis with Latent Diffusion Models (appendix G)
    https://arxiv.org/abs/2112.10752
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gen.networks.autoencoding import ImageDecoder, ImageEncoder
from lightning_gen.networks.base import level_numbers, level_widths, positive
from lightning_gen.networks.unet import Level
from lightning_gen.networks.unet_blocks import (
    BlockSettings,
    Downsample,
    ResidualBlock,
    Upsample,
    conv3,
    normalized_silu,
)


class ConvolutionalEncoder(ImageEncoder):
    """Images to features, by residual blocks and halvings.

    Args:
        image_shape: `(C, H, W)` of the data; H and W divisible by 2 for every level but the first. Images of other
            sizes that are divisible so are taken, too.
        out_channels: channels of the features: twice those of a latent for a `GaussianBottleneck`.
        channels: width that the multipliers multiply.
        channel_multipliers: one per level, from full resolution down; one level more is one halving more.
        blocks: residual blocks of a level.
        attention_levels: levels with attention behind every block, 0 for full resolution, -1 for the deepest.
        middle_attention: whether there is attention in the middle.
        dropout: probability with which a hidden value of a residual block is dropped.
        norm_groups: groups of a normalization, at most.
        norm_eps: added to the variance.
        quant_conv: whether a 1x1 convolution ends the network.
        quant_channels: channels that it is given; null for `out_channels`.
        checkpointing: whether blocks are computed again in the backward pass, for less memory and more time.
        channels_last: whether weights and images lie in memory with the channels last, which the fast convolutions
            on the CPU need.

    Raises:
        ValueError: where an argument is out of range, or the image does not halve that often.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 256, 256),
        out_channels: int = 8,
        channels: int = 128,
        channel_multipliers: Sequence[float] = (1, 2, 4, 4),
        blocks: int = 2,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        quant_conv: bool = True,
        quant_channels: int | None = None,
        checkpointing: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(image_shape, out_channels, _factor(channel_multipliers))
        self.channels, self.blocks = positive(self, "channels", channels), positive(self, "blocks", blocks)
        self.widths = level_widths(self, self.channels, channel_multipliers)
        self.attention_levels = level_numbers(self, "attention_levels", attention_levels, len(self.widths))
        self.middle_attention, self.dropout = middle_attention, dropout
        self.quant_channels = _quant_channels(self, quant_conv, quant_channels, self.out_channels)
        self.checkpointing, self.channels_last = checkpointing, channels_last
        settings = _settings(self, dropout, norm_groups, norm_eps)
        width = self.widths[0]
        self.input = conv3(self.image_shape[0], width)
        self.levels = nn.ModuleList()
        for level, outputs in enumerate(self.widths):
            has, last = level in self.attention_levels, level == len(self.widths) - 1
            stack = _stack(width, outputs, self.blocks, settings, has)
            self.levels.append(Level(stack, None if last else Downsample(outputs, "conv_asymmetric")))
            width = outputs
        self.middle = _middle(width, settings, middle_attention)
        self.norm = settings.norm(width)
        self.output = conv3(width, self.quant_channels or self.out_channels)
        self.quant_conv = nn.Conv2d(self.quant_channels, self.out_channels, 1) if self.quant_channels else None
        _finish(self, channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Map images in [-1, 1], `(B, C, H, W)`, to features `(B, out_channels, H / factor, W / factor)`.

        Raises:
            ValueError: for images of other channels, or whose size cannot be halved that often.
        """
        self.check(x)
        x = self.input(_laid_out(x, self.input, self.channels_last))
        x = _through([*_layers(self.levels), *self.middle], x, self.checkpointing)
        x = self.output(normalized_silu(self.norm, x))
        features: Tensor = x if self.quant_conv is None else self.quant_conv(x)
        return features.contiguous()


class ConvolutionalDecoder(ImageDecoder):
    """Latents to images, by residual blocks and doublings.

    Args:
        image_shape: `(C, H, W)` of the data; H and W divisible by 2 for every level but the first. Latents of images
            of other sizes are taken, too.
        in_channels: channels of the latents.
        channels: width that the multipliers multiply.
        channel_multipliers: one per level, from full resolution down, as in the encoder.
        blocks: residual blocks of a level of the encoder; here there is one more.
        attention_levels: levels with attention behind every block, 0 for full resolution, -1 for the deepest.
        middle_attention: whether there is attention in the middle.
        dropout: probability with which a hidden value of a residual block is dropped.
        norm_groups: groups of a normalization, at most.
        norm_eps: added to the variance.
        post_quant_conv: whether a 1x1 convolution begins the network.
        quant_channels: channels that it makes; null for `in_channels`.
        checkpointing: whether blocks are computed again in the backward pass, for less memory and more time.
        channels_last: whether weights and images lie in memory with the channels last, which the fast convolutions
            on the CPU need.

    Raises:
        ValueError: where an argument is out of range, or the image does not halve that often.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (3, 256, 256),
        in_channels: int = 4,
        channels: int = 128,
        channel_multipliers: Sequence[float] = (1, 2, 4, 4),
        blocks: int = 2,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        post_quant_conv: bool = True,
        quant_channels: int | None = None,
        checkpointing: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(image_shape, in_channels, _factor(channel_multipliers))
        self.channels, self.blocks = positive(self, "channels", channels), positive(self, "blocks", blocks)
        self.widths = level_widths(self, self.channels, channel_multipliers)
        self.attention_levels = level_numbers(self, "attention_levels", attention_levels, len(self.widths))
        self.middle_attention, self.dropout = middle_attention, dropout
        self.quant_channels = _quant_channels(self, post_quant_conv, quant_channels, self.in_channels)
        self.checkpointing, self.channels_last = checkpointing, channels_last
        settings = _settings(self, dropout, norm_groups, norm_eps)
        width = self.widths[-1]
        self.post_quant_conv = nn.Conv2d(self.in_channels, self.quant_channels, 1) if self.quant_channels else None
        self.input = conv3(self.quant_channels or self.in_channels, width)
        self.middle = _middle(width, settings, middle_attention)
        self.levels = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(self.widths))):
            stack = _stack(width, outputs, self.blocks + 1, settings, level in self.attention_levels)
            self.levels.append(Level(stack, Upsample(outputs, convolve=True) if level else None))
            width = outputs
        self.norm = settings.norm(width)
        self.output = conv3(width, self.image_shape[0])
        _finish(self, channels_last)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the last convolution."""
        return self.output.weight  # type: ignore[return-value]

    def forward(self, z: Tensor) -> Tensor:
        """Map latents `(B, in_channels, h, w)` to images `(B, C, factor h, factor w)`, nearly in [-1, 1].

        Raises:
            ValueError: for latents of other channels.
        """
        self.check(z)
        z = _laid_out(z, self.input, self.channels_last)
        z = self.input(z if self.post_quant_conv is None else self.post_quant_conv(z))
        x = _through([*self.middle, *_layers(self.levels)], z, self.checkpointing)
        images: Tensor = self.output(normalized_silu(self.norm, x))
        return images.contiguous()


# ---------------------------------------------------------------------- what the two have in common


def _factor(multipliers: Sequence[float]) -> int:
    return int(2 ** max(0, len(multipliers) - 1))


def _quant_channels(net: nn.Module, wanted: bool, channels: int | None, outside: int) -> int:
    """Return the channels inside of the 1x1 convolution, 0 where there is none."""
    if not wanted and channels is not None:
        raise ValueError(
            f"{type(net).__name__} was given quant_channels={channels} and no 1x1 convolution that has them: leave"
            " quant_channels out."
        )
    return (outside if channels is None else positive(net, "quant_channels", channels)) if wanted else 0


def _settings(net: nn.Module, dropout: float, groups: int, eps: float) -> BlockSettings:
    if not 0 <= dropout < 1:
        raise ValueError(f"{type(net).__name__} takes a dropout in [0, 1), not {dropout}.")
    return BlockSettings(positive(net, "norm_groups", groups), 1, eps, dropout)


def _stack(inputs: int, outputs: int, count: int, settings: BlockSettings, attention: bool) -> list[ResidualBlock]:
    widths = [inputs] + [outputs] * count
    return [ResidualBlock(widths[i], outputs, settings, attention=attention) for i in range(count)]


def _middle(width: int, settings: BlockSettings, attention: bool) -> nn.ModuleList:
    first = ResidualBlock(width, width, settings, attention=attention)
    return nn.ModuleList([first, ResidualBlock(width, width, settings)])


def _finish(net: nn.Module, channels_last: bool) -> None:
    """Draw the weights as torch does, which the published networks do too, and lay them out."""
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.reset_parameters()
    if channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _laid_out(x: Tensor, first: nn.Conv2d, channels_last: bool) -> Tensor:
    x = x.to(first.weight.dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _layers(levels: nn.ModuleList) -> list[nn.Module]:
    """List the blocks of all levels and what resamples between them, in order."""
    layers: list[nn.Module] = []
    for level in levels:
        layers += [*level.blocks, level.resample]  # type: ignore[list-item, misc]
    return [layer for layer in layers if layer is not None]


def _through(layers: Iterable[nn.Module], x: Tensor, checkpointing: bool) -> Tensor:
    for layer in layers:
        again = checkpointing and torch.is_grad_enabled()
        x = checkpoint(layer, x, use_reentrant=False) if again else layer(x)
    return x
