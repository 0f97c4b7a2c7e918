r"""The blocks of the U-Net and of autoencoders: residual block with or without a noise label, attention, resampling.

A residual block computes, with e its slice of the stacked projection of the embedding and r its resampling,

.. math::
    h = \mathrm{conv}_1(r(\mathrm{silu}(\mathrm{norm}_1 x))), \qquad
    y = c\,(\mathrm{conv}_2(\mathrm{silu}(\mathrm{norm}_2(h + e))) + s(r(x))),

s being a 1x1 convolution where the width changes, else the identity, and c 1 or :math:`1/\sqrt 2`. Without a noise
label e is 0. In the adaptive form e holds a scale and a shift, and :math:`(1 + e_s)\,\mathrm{norm}_2(h) + e_t` takes
the place of :math:`\mathrm{norm}_2(h + e)`.

A nearest-neighbor doubling followed by a 3x3 convolution is a transposed 4x4 convolution of stride 2 whose kernel is,
along each axis, the flipped kernel summed with its neighbor: (w2, w1 + w2, w0 + w1, w0). It takes 16 products a
pixel of the input in place of 36.

References:
    Denoising Diffusion Probabilistic Models: https://arxiv.org/abs/2006.11239
    Diffusion Models Beat GANs on Image Synthesis (ADM): https://arxiv.org/abs/2105.05233
    Elucidating the Design Space of Diffusion-Based Generative Models (EDM): https://arxiv.org/abs/2206.00364
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.networks.winograd import Conv3x3

Modulation: TypeAlias = Literal["add", "scale_shift"]
Resampling: TypeAlias = Literal["none", "up", "down"]


@dataclass(frozen=True)
class BlockSettings:
    """What all blocks of a network have in common.

    Attributes:
        groups: number of groups of a normalization, at most.
        group_width: channels of a group, at least.
        eps: added to the variance.
        dropout: probability with which a hidden value is dropped.
        modulation: how a block is told the embedding.
        skip_scale: c, the factor of every residual sum.
        resample_projection: whether a resampling block has a 1x1 convolution on its shortcut at equal widths, too.
        head_dim: width of an attention head, None for one head.
        token_dim: width of the tokens for cross-attention, 0 for none.
    """

    groups: int = 32
    group_width: int = 4
    eps: float = 1e-6
    dropout: float = 0.0
    modulation: Modulation = "add"
    skip_scale: float = 1.0
    resample_projection: bool = False
    head_dim: int | None = None
    token_dim: int = 0

    def norm(self, channels: int) -> nn.GroupNorm:
        """Return a group normalization for that many channels, of as many groups as go and divide them."""
        most = max(1, min(self.groups, channels // self.group_width))
        groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
        return nn.GroupNorm(groups, channels, eps=self.eps)

    def heads(self, channels: int) -> int:
        """Return the number of attention heads for that many channels.

        Raises:
            ValueError: where the channels do not divide into heads.
        """
        width = channels if self.head_dim is None else self.head_dim
        if width < 1 or channels % width:
            raise ValueError(f"UNet: {channels} channels do not divide into heads of head_dim={self.head_dim}.")
        return channels // width


def initialized(layer: nn.Module, scale: float = 1.0) -> nn.Module:
    """Draw the weight of a layer from the uniform distribution of Glorot, times a scale; the bias is 0."""
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return layer
    if scale:
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv3(inputs: int, outputs: int, zero: bool = False) -> Conv3x3:
    """Return a 3x3 convolution, zero where asked for."""
    layer = Conv3x3(inputs, outputs)
    initialized(layer, 0.0 if zero else 1.0)
    return layer


def normalized_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalize, then SiLU, in place where no gradient is recorded (its backward pass needs the input)."""
    return F.silu(norm(x), inplace=not torch.is_grad_enabled())


def doubling_matrix(weight: Tensor) -> Tensor:
    """Return the 9x16 matrix from a 3x3 kernel to the 4x4 kernel of the transposed convolution."""
    one_axis = weight.new_tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
    return torch.kron(one_axis, one_axis)


def doubled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a 3x3 convolution to the image doubled by nearest neighbors."""
    if x.device.type != "cpu":  # where there is a fast kernel for 3x3, and none for this
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]
    outputs, inputs = conv.weight.shape[:2]
    kernel = (conv.weight.reshape(outputs * inputs, 9) @ doubling_matrix(conv.weight)).view(outputs, inputs, 4, 4)
    return F.conv_transpose2d(x, kernel.transpose(0, 1), conv.bias, stride=2, padding=1)


class Downsample(nn.Module):
    """Half the height and width: by a 3x3 convolution of stride 2, or by the mean of 2x2 pixels.

    Args:
        channels: number of channels.
        kind: "conv" with a border of zeros all round, "conv_asymmetric" with one at the bottom and the right, "pool".
    """

    def __init__(self, channels: int, kind: Literal["conv", "conv_asymmetric", "pool"]) -> None:
        super().__init__()
        self.conv = None
        if kind != "pool":
            self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if kind == "conv" else 0)
            initialized(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C, H/2, W/2)`."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        halved: Tensor = self.conv(x if self.conv.padding != (0, 0) else F.pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Twice the height and width by nearest neighbors, followed by a 3x3 convolution or not.

    Args:
        channels: number of channels.
        convolve: whether there is the convolution.
    """

    def __init__(self, channels: int, convolve: bool) -> None:
        super().__init__()
        self.conv = conv3(channels, channels) if convolve else None

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to `(B, C, 2 H, 2 W)`."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.conv is None else doubled_conv(x, self.conv)


class SelfAttention(nn.Module):
    """Every pixel looks at all pixels: normalization, one product for queries, keys and values, residual sum.

    Args:
        channels: number of channels.
        settings: what all blocks have in common.
    """

    def __init__(self, channels: int, settings: BlockSettings) -> None:
        super().__init__()
        self.heads, self.scale = settings.heads(channels), settings.skip_scale
        self.norm = settings.norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        for part in self.qkv.weight.data.chunk(3):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.qkv.bias)
        self.out = nn.Linear(channels, channels)
        initialized(self.out, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(B, C, H, W)` to the same shape."""
        batch, channels, height, width = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(pixels).view(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return _residual(x, self.out(_attended(q, k, v)), self.scale)


class CrossAttention(nn.Module):
    """Every pixel looks at the tokens of the condition.

    Args:
        channels: number of channels.
        settings: what all blocks have in common.
    """

    def __init__(self, channels: int, settings: BlockSettings) -> None:
        super().__init__()
        self.heads, self.scale = settings.heads(channels), settings.skip_scale
        self.norm = settings.norm(channels)
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(settings.token_dim, 2 * channels)
        self.out = nn.Linear(channels, channels)
        initialized(self.q)
        initialized(self.kv)
        initialized(self.out, 0.0)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map `(B, C, H, W)` and tokens `(B, L, D)`, seen where the mask `(B, 1, 1, L)` is true, to `(B, C, H, W)`."""
        batch, channels = x.shape[:2]
        shape = (batch, -1, self.heads, channels // self.heads)
        q = self.q(self.norm(x).flatten(2).transpose(1, 2)).view(shape).transpose(1, 2)
        k, v = (part.reshape(shape).transpose(1, 2) for part in self.kv(tokens).chunk(2, dim=-1))
        return _residual(x, self.out(_attended(q, k, v, mask)), self.scale)


def _attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of `(B, heads, N, d)`, the heads put side by side: `(B, N, heads d)`."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _residual(x: Tensor, pixels: Tensor, scale: float) -> Tensor:
    """Add `(B, H W, C)` to the image it was made of."""
    added = x + pixels.transpose(1, 2).reshape(x.shape)
    return added if scale == 1 else added.mul_(scale)


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, with attention behind them where asked for.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        settings: what all blocks have in common.
        resampling: whether the block halves or doubles the image.
        attention: whether self-attention follows, and cross-attention where there are tokens.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        settings: BlockSettings,
        resampling: Resampling = "none",
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.outputs, self.resampling = outputs, resampling
        self.scale, self.dropout = settings.skip_scale, settings.dropout
        self.adaptive = settings.modulation == "scale_shift"
        self.norm1, self.conv1 = settings.norm(inputs), conv3(inputs, outputs)
        self.norm2, self.conv2 = settings.norm(outputs), conv3(outputs, outputs, zero=True)
        projected = inputs != outputs or (resampling != "none" and settings.resample_projection)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if projected else nn.Identity()
        initialized(self.shortcut)
        self.attention = SelfAttention(outputs, settings) if attention else None
        self.cross = CrossAttention(outputs, settings) if attention and settings.token_dim else None

    @property
    def modulation_width(self) -> int:
        """Length of the slice of the stacked projection that `forward` takes."""
        return self.outputs * (2 if self.adaptive else 1)

    def forward(
        self, x: Tensor, e: Tensor | None = None, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Map `(B, inputs, H, W)` and the modulation `(B, modulation_width)`, or none, to `(B, outputs, H', W')`."""
        h = normalized_silu(self.norm1, x)
        if self.resampling == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        # The sums in place: neither a convolution nor a sum needs its own result in the backward pass.
        h = doubled_conv(h, self.conv1) if self.resampling == "up" else self.conv1(h)
        h = normalized_silu(self.norm2, h) if e is None else self._modulated(h, e[:, :, None, None])
        if self.dropout and self.training:
            h = F.dropout(h, self.dropout)
        x = self.shortcut(x)
        if self.resampling == "up":  # behind the shortcut, which has four times fewer pixels to do that way
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.conv2(h).add_(x)
        if self.scale != 1:
            x = x.mul_(self.scale)
        if self.attention is not None:
            x = self.attention(x)
        if self.cross is not None and tokens is not None:
            x = self.cross(x, tokens, mask)
        return x

    def _modulated(self, h: Tensor, e: Tensor) -> Tensor:
        if not self.adaptive:
            return normalized_silu(self.norm2, h.add_(e))
        scale, shift = e.chunk(2, dim=1)
        return F.silu(torch.addcmul(shift, self.norm2(h), scale + 1), inplace=not torch.is_grad_enabled())
