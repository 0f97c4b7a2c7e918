r"""Codes of two levels: a coarse grid for what an image is as a whole, a grid twice as fine for the rest (VQ-VAE-2).

.. math::
    e_\text{top} = \operatorname{Quantize}(E_\text{top}(h)), \qquad
    e_\text{bottom} = \operatorname{Quantize}(C(h, D_\text{top}(e_\text{top}))), \qquad
    z = [U(e_\text{top}), e_\text{bottom}]

for features h of the encoder: E halves, D and U double, C is a convolution of both, and the decoder is given both
levels' codes beside each other (algorithm 1).

The codes of an image lie on the coarse grid: each place has the codes of its top vector and then those of its four
bottom vectors, row by row.

References:
    Generating Diverse High-Fidelity Images with VQ-VAE-2
    https://arxiv.org/abs/1906.00446
"""

import torch
from torch import Tensor, nn

from lightning_gen.autoencoder.bottlenecks import Bottled
from lightning_gen.autoencoder.quantizers.base import Quantizer
from lightning_gen.networks.vqvae import decoder_layers, encoder_layers, upward
from lightning_gen.seeding import RandomStream


class TwoLevelQuantizer(Quantizer):
    """Features to codes of two grids, the coarse one half as high and as wide.

    Args:
        in_channels: channels of the features.
        top: quantizer of the coarse grid.
        bottom: quantizer of the fine grid.
        channels: width of the layers between the two, even.
        blocks: residual blocks of each stack.
        block_channels: width inside a residual block.

    Attributes:
        num_quantizers: codes of a place of the coarse grid: five where both levels have one a vector.

    Raises:
        ValueError: for a number out of range.
    """

    tileable = False  # places are paired with those of the upper level

    def __init__(
        self,
        in_channels: int,
        top: Quantizer,
        bottom: Quantizer,
        channels: int = 128,
        blocks: int = 2,
        block_channels: int = 64,
    ) -> None:
        super().__init__(
            in_channels,
            top.out_channels + bottom.out_channels,
            max(top.codebook_size, bottom.codebook_size),
            top.num_quantizers + 4 * bottom.num_quantizers,
        )
        self.top, self.bottom = top, bottom
        sizes = (channels, blocks, block_channels)
        self.encode_top = encoder_layers(in_channels, top.in_channels, 1, *sizes)
        self.decode_top = decoder_layers(top.out_channels, in_channels, 1, *sizes)
        self.condition = nn.Conv2d(2 * in_channels, bottom.in_channels, 1)
        self.upsample = upward(top.out_channels, top.out_channels)

    def check(self, features: Tensor) -> None:
        """Raise a ValueError for features of another number of channels, or with an odd side."""
        super().check(features)
        height, width = features.shape[2:]
        if height % 2 or width % 2:
            raise ValueError(
                f"TwoLevelQuantizer halves its features, and {height} x {width} has an odd side: resize or crop the"
                " data so that its sides are multiples of twice the encoder's factor (--data.size)."
            )

    def forward(self, features: Tensor, stream: RandomStream | None = None) -> Bottled:
        """Map features `(B, in_channels, h, w)` to codes of both levels; see `Bottleneck.forward`."""
        self.check(features)
        top = self.top(self.encode_top(features), stream)
        told = self.decode_top(top.z.to(self.upsample.weight.dtype))
        bottom = self.bottom(self.condition(torch.cat([features, told.to(features.dtype)], dim=1)), stream)
        logs = {f"top_{name}": value for name, value in top.logs.items()}
        logs |= {f"bottom_{name}": value for name, value in bottom.logs.items()}
        indices = torch.cat([_places(top.indices), _folded(_places(bottom.indices))], dim=-1)
        return Bottled(self._joined(top.z, bottom.z), top.loss + bottom.loss, logs | self.use(), indices)

    def draw_indices(self, stream: RandomStream, grid: tuple[int, int]) -> Tensor:
        """Draw codes of both levels; see `Quantizer.draw_indices`."""
        top = self.top.draw_indices(stream, (grid[0] // 2, grid[1] // 2))
        return torch.cat([_places(top), _folded(_places(self.bottom.draw_indices(stream, grid)))], dim=-1)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Map codes to latents; see `Quantizer.decode_indices`.

        Args:
            indices: int64 `(B, h / 2, w / 2, 5)`, h and w being the features' sides; or more than five where a level
                has several codes of a vector.
        """
        self.check_indices(indices, 4, lowest=-1)
        if indices.shape[-1] != self.num_quantizers:
            raise ValueError(
                f"TwoLevelQuantizer decodes {self.num_quantizers} codes of a place, those of one vector of the top"
                f" level and of four of the bottom level; given were {indices.shape[-1]}."
            )
        top, bottom = torch.split(indices, [self.top.num_quantizers, 4 * self.bottom.num_quantizers], dim=-1)
        levels = ((self.top, top), (self.bottom, _unfolded(bottom)))
        decoded = [
            level.decode_indices(codes if level.num_quantizers > 1 else codes[..., 0]) for level, codes in levels
        ]
        return self._joined(decoded[0], decoded[1])

    def _joined(self, top: Tensor, bottom: Tensor) -> Tensor:
        # latents are wide, weights may be of half precision
        return torch.cat([self.upsample(top.to(self.upsample.weight.dtype)).to(bottom.dtype), bottom], dim=1)


def _places(indices: Tensor) -> Tensor:
    """Return codes as `(B, h, w, Q)`, those `(B, h, w)` of a level with one a place too."""
    return indices if indices.ndim == 4 else indices[..., None]


def _folded(indices: Tensor) -> Tensor:
    """Map codes `(B, 2 h, 2 w, Q)` of a fine grid to those of 2 x 2 places each, `(B, h, w, 4 Q)`."""
    batch, height, width, codes = indices.shape
    blocks = indices.reshape(batch, height // 2, 2, width // 2, 2, codes)
    return blocks.movedim(2, 3).flatten(3)


def _unfolded(indices: Tensor) -> Tensor:
    """Undo `_folded`."""
    batch, height, width, codes = indices.shape
    blocks = indices.reshape(batch, height, width, 2, 2, codes // 4)
    return blocks.movedim(3, 2).reshape(batch, 2 * height, 2 * width, codes // 4)
