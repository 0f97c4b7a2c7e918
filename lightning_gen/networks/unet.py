r"""The U-Net of diffusion models: DDPM, ADM and EDM (DDPM++) by arguments.

An image passes levels of residual blocks, each level at half the height and width of the one before, then a middle
of two blocks, then the levels in reverse; every block on the way up sees the output of its counterpart on the way
down beside its input. One linear layer makes the modulations of all residual blocks at once from the embedding of
noise label and condition.

`UNet.preset` gives the published ones:

| preset           | architecture                                | parameters  |
|------------------|---------------------------------------------|-------------|
| `ddpm_cifar10`   | DDPM, CIFAR-10                              | 35,746,307  |
| `edm_cifar10`    | DDPM++ as in EDM, CIFAR-10, unconditional   | 55,732,739  |
| `adm_imagenet64` | ADM as in EDM, ImageNet 64x64, 1000 classes | 295,899,267 |
| `small_28`       | three levels, for MNIST on a CPU            | 1,623,169   |
| `small_32`       | three levels, for CIFAR-10 on a CPU         | 2,534,083   |

References:
    Denoising Diffusion Probabilistic Models: https://arxiv.org/abs/2006.11239
    Score-Based Generative Modeling through SDEs (DDPM++): https://arxiv.org/abs/2011.13456
    Diffusion Models Beat GANs on Image Synthesis (ADM): https://arxiv.org/abs/2105.05233
    Elucidating the Design Space of Diffusion-Based Generative Models (EDM): https://arxiv.org/abs/2206.00364
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_gen.errors import choose
from lightning_gen.networks.base import level_numbers, level_widths, positive
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork
from lightning_gen.networks.embeddings import EmbeddingOrder
from lightning_gen.networks.unet_blocks import (
    BlockSettings,
    Downsample,
    Modulation,
    ResidualBlock,
    Upsample,
    conv3,
    initialized,
    normalized_silu,
)
from lightning_gen.networks.unet_embedding import ClassEmbedding, ConditionEmbedding, EmbeddingKind, label_features
from lightning_gen.networks.unet_presets import PRESETS

ResamplingKind: TypeAlias = Literal["conv", "conv_asymmetric", "pool", "block"]


class Level(nn.Module):
    """The residual blocks of one resolution and what leads to the next one.

    Args:
        blocks: the residual blocks.
        resample: what follows them, None at the last level.
    """

    def __init__(self, blocks: Sequence[ResidualBlock], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample


class UNet(DenoisingNetwork):
    """Residual U-Net with group normalization, told the noise label by additive or adaptive modulation.

    Args:
        image_shape: `(C, H, W)` of the data; H and W divisible by 2 for every level but the first.
        channels: width that the multipliers multiply.
        channel_multipliers: one per level, from full resolution down.
        blocks: residual blocks of a level on the way down; one more on the way up.
        patch_size: height and width of the squares of pixels that become channels before the first level.
        attention_levels: levels with attention, 0 for full resolution, -1 for the deepest.
        decoder_attention: whether on the way up "all" blocks of such a level have attention or the "last" alone.
        middle_attention: whether there is attention in the middle.
        head_dim: width of an attention head; null for one head.
        dropout: probability with which a hidden value of a residual block is dropped.
        norm_groups: groups of a normalization, at most.
        norm_group_width: channels of a group, at least.
        norm_eps: added to the variance.
        modulation: "add" the embedding to the hidden image (DDPM), or "scale_shift" it by the embedding (ADM).
        resampling: "conv" (stride 2 down, nearest neighbors and a convolution up), "conv_asymmetric" (the same, the
            border of zeros at the bottom and the right alone: DDPM), "pool" (no weights), or inside a residual
            "block" (ADM, EDM).
        resample_projection: whether a resampling block has a 1x1 convolution on its shortcut (DDPM++ in EDM).
        skip_scale: factor of every residual sum, 1 or 0.7071 (1 / sqrt 2).
        embedding: how the noise label is seen: "positional" (fixed frequencies) or "fourier" (random ones).
        embedding_order: which half comes first.
        embedding_freq_shift: 1 ends at the lowest frequency exactly, 0 one step before.
        fourier_scale: standard deviation of random frequencies.
        embedding_dim: width of the embedding; null for 4 times `channels`.
        class_embedding: "table" (a row per class, added to the embedding) or "one_hot" (a linear layer, added to the
            features of the noise label, zeros for "none": EDM).
        num_classes: number of classes K; null for none.
        null_class: whether there is a class K, "none".
        learned_variance: whether the output has 2 C channels.
        vector_dim: length of the condition's vector, 0 for none.
        token_dim: width of the condition's tokens, seen by cross-attention; 0 for none.
        image_channels: channels of the condition's picture, put beside the noisy image; 0 for none.
        augment_dim: length of the augmentation's description, 0 for none.
        two_times: whether the network is told a second time.
        checkpointing: whether blocks are computed again in the backward pass, for less memory and more time.
        channels_last: whether weights and images lie in memory with the channels last.

    Raises:
        ValueError: where an argument is out of range, or the image does not halve that often.
    """

    def __init__(
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        channels: int = 32,
        channel_multipliers: Sequence[float] = (1, 2, 2),
        blocks: int = 2,
        patch_size: int = 1,
        attention_levels: Sequence[int] = (-1,),
        decoder_attention: Literal["all", "last"] = "all",
        middle_attention: bool = True,
        head_dim: int | None = None,
        dropout: float = 0.0,
        norm_groups: int = 32,
        norm_group_width: int = 4,
        norm_eps: float = 1e-6,
        modulation: Modulation = "add",
        resampling: ResamplingKind = "conv",
        resample_projection: bool = False,
        skip_scale: float = 1.0,
        embedding: EmbeddingKind = "positional",
        embedding_order: EmbeddingOrder = "sin_cos",
        embedding_freq_shift: int = 1,
        fourier_scale: float = 16.0,
        embedding_dim: int | None = None,
        class_embedding: ClassEmbedding = "table",
        num_classes: int | None = None,
        null_class: bool = True,
        learned_variance: bool = False,
        vector_dim: int = 0,
        token_dim: int = 0,
        image_channels: int = 0,
        augment_dim: int = 0,
        two_times: bool = False,
        checkpointing: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            image_shape,
            num_classes,
            null_class,
            learned_variance,
            vector_dim,
            token_dim,
            image_channels,
            augment_dim,
            two_times,
        )
        choose("modulation", modulation, dict.fromkeys(("add", "scale_shift")))
        choose("resampling", resampling, dict.fromkeys(("conv", "conv_asymmetric", "pool", "block")))
        choose("embedding", embedding, dict.fromkeys(("positional", "fourier")))
        choose("class_embedding", class_embedding, dict.fromkeys(("table", "one_hot")))
        choose("decoder_attention", decoder_attention, dict.fromkeys(("all", "last")))
        if not 0 <= dropout < 1:
            raise ValueError(f"UNet takes a dropout in [0, 1), not {dropout}.")
        self.channels = positive(self, "channels", channels)
        self.blocks = positive(self, "blocks", blocks)
        self.patch_size = positive(self, "patch_size", patch_size)
        self.widths = self._widths(channel_multipliers)
        self.attention_levels = level_numbers(self, "attention_levels", attention_levels, len(self.widths))
        self.decoder_attention, self.middle_attention = decoder_attention, middle_attention
        self.resampling: ResamplingKind = resampling
        self.class_embedding = class_embedding
        self.checkpointing, self.channels_last = checkpointing, channels_last
        self.settings = BlockSettings(
            positive(self, "norm_groups", norm_groups),
            positive(self, "norm_group_width", norm_group_width),
            norm_eps,
            dropout,
            modulation,
            skip_scale,
            resample_projection,
            head_dim,
            token_dim,
        )
        self.embedding_dim = positive(self, "embedding_dim", embedding_dim or 4 * self.channels)
        features = label_features(self.channels, embedding, embedding_order, embedding_freq_shift, fourier_scale)
        self.embedding = ConditionEmbedding(self, features, self.embedding_dim, class_embedding)
        self._build()
        if channels_last:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "UNet":
        """Build a published network, or a small one.

        Args:
            name: one of those in the table above.
            **changes: arguments that differ.

        Raises:
            ValueError: for an unknown name; lists the known ones.
        """
        return cls(**(choose("preset", name, PRESETS) | changes))

    def _widths(self, multipliers: Sequence[float]) -> list[int]:
        widths = level_widths(self, self.channels, multipliers)
        halvings = len(widths) - 1
        divisor = self.patch_size * 2**halvings
        if any(side % divisor for side in self.image_shape[1:]):
            height, width = self.image_shape[1:]
            patches = f" after patches of {self.patch_size}" if self.patch_size > 1 else ""
            raise ValueError(
                f"UNet with {len(widths)} levels halves images {halvings} times{patches} and takes sides divisible by"
                f" {divisor}, not {height} x {width}; take away channel_multipliers or pad the images."
            )
        return widths

    def _build(self) -> None:
        settings, widths = self.settings, self.widths
        width = self.channels
        self.input = conv3(self.in_channels * self.patch_size**2, width)
        initialized(self.input)
        skips = [width]
        self.encoder = nn.ModuleList()
        for level, outputs in enumerate(widths):
            stack = []
            for _ in range(self.blocks):
                stack.append(ResidualBlock(width, outputs, settings, attention=level in self.attention_levels))
                width = outputs
            last = level == len(widths) - 1
            skips += [width] * (self.blocks + (not last))
            self.encoder.append(Level(stack, None if last else self._resample(width, "down")))
        self.middle = nn.ModuleList(
            [
                ResidualBlock(width, width, settings, attention=self.middle_attention),
                ResidualBlock(width, width, settings),
            ]
        )
        self.decoder = nn.ModuleList()
        for level, outputs in reversed(list(enumerate(widths))):
            stack = []
            for index in range(self.blocks + 1):
                attention = level in self.attention_levels and (self.decoder_attention == "all" or index == self.blocks)
                stack.append(ResidualBlock(width + skips.pop(), outputs, settings, attention=attention))
                width = outputs
            self.decoder.append(Level(stack, self._resample(width, "up") if level else None))
        self.norm = settings.norm(width)
        self.output = conv3(width, self.out_channels * self.patch_size**2, zero=True)
        self.modulation_widths = [block.modulation_width for block in self.residual_blocks()]
        self.modulations = nn.Linear(self.embedding_dim, sum(self.modulation_widths))
        for part in torch.split(self.modulations.weight.data, self.modulation_widths):
            nn.init.xavier_uniform_(part)
        nn.init.zeros_(self.modulations.bias)

    def _resample(self, width: int, direction: Literal["up", "down"]) -> nn.Module:
        if self.resampling == "block":
            return ResidualBlock(width, width, self.settings, direction)
        if direction == "down":
            return Downsample(width, self.resampling)
        return Upsample(width, self.resampling != "pool")

    def residual_blocks(self) -> list[ResidualBlock]:
        """Return the residual blocks in the order in which they act and have their part of the modulations."""
        return [part for part in self.modules() if isinstance(part, ResidualBlock)]

    def blocks_to_shard(self) -> list[nn.Module]:
        """List the residual blocks."""
        return list(self.residual_blocks())

    def forward(
        self, x: Tensor, noise_label: Tensor, cond: Condition | None = None, second_label: Tensor | None = None
    ) -> Tensor:
        """Estimate what the parameterization asks for; see `DenoisingNetwork.forward`.

        Raises:
            ValueError: for an input that the network does not take.
        """
        cond = self.check(x, cond, second_label)
        embedded = F.silu(self.embedding(noise_label, cond, second_label))
        modulations = iter(self.modulations(embedded).split(self.modulation_widths, dim=1))
        x = x.to(self.input.weight.dtype)
        if cond.image is not None:
            x = torch.cat([x, cond.image.to(x.dtype)], dim=1)
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        tokens, mask = self._tokens(cond, x.dtype)
        x = self._through(self.input(x), modulations, tokens, mask)
        x = self.output(normalized_silu(self.norm, x))
        if self.patch_size > 1:
            x = F.pixel_shuffle(x, self.patch_size)
        return x.contiguous() if self.channels_last else x

    def _through(self, x: Tensor, modulations: Iterator[Tensor], tokens: Tensor | None, mask: Tensor | None) -> Tensor:
        def apply(layer: nn.Module, x: Tensor) -> Tensor:
            if isinstance(layer, ResidualBlock):
                return self._block(layer, x, next(modulations), tokens, mask)
            resampled: Tensor = layer(x)
            return resampled

        skips = [x]
        for level in self.encoder:
            for block in level.blocks:  # type: ignore[union-attr]
                x = apply(block, x)
                skips.append(x)
            if level.resample is not None:
                x = apply(level.resample, x)  # type: ignore[arg-type]
                skips.append(x)
        for block in self.middle:
            x = apply(block, x)
        for level in self.decoder:
            for block in level.blocks:  # type: ignore[union-attr]
                x = apply(block, torch.cat([x, skips.pop()], dim=1))
            if level.resample is not None:
                x = apply(level.resample, x)  # type: ignore[arg-type]
        return x

    def _block(
        self, block: ResidualBlock, x: Tensor, modulation: Tensor, tokens: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, x, modulation, tokens, mask, use_reentrant=False)
            return again
        here: Tensor = block(x, modulation, tokens, mask)
        return here

    def _tokens(self, cond: Condition, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        if cond.tokens is None:
            return None, None
        tokens = cond.tokens.to(dtype)
        if cond.mask is None:
            return tokens, None
        mask = cond.mask
        tokens = tokens.masked_fill(~mask[:, :, None], 0.0)
        # A sample without any token sees zeros, which stand for "none"; attention to nothing would be NaN.
        mask = mask | ~mask.any(dim=1, keepdim=True)
        return tokens, mask[:, None, None, :]
