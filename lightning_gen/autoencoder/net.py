"""Encoder, bottleneck and decoder as one network: what is trained, averaged and, frozen, handed on as a codec."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gen.autoencoder.bottlenecks import Bottled, Bottleneck
from lightning_gen.networks.autoencoding import ImageDecoder, ImageEncoder, LatentNetwork
from lightning_gen.seeding import RandomStream


class Reconstructed(NamedTuple):
    """What a pass through the network gives.

    Attributes:
        image: `(B, C, H, W)`, nearly in [-1, 1].
        bottled: what the bottleneck made of the features.
    """

    image: Tensor
    bottled: Bottled


class AutoencoderNet(LatentNetwork):
    """An autoencoder of images.

    Args:
        encoder: images to features.
        bottleneck: features to latents.
        decoder: latents to images.

    Raises:
        ValueError: where the parts do not fit together; says which numbers to change.
    """

    # called besides `forward`, which strategies that shard have to know
    forward_methods = ("encode", "decode", "draw")

    def __init__(self, encoder: ImageEncoder, bottleneck: Bottleneck, decoder: ImageDecoder) -> None:
        super().__init__()
        _check_fit(encoder, bottleneck, decoder)
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        self.image_shape = encoder.image_shape
        self.latent_shape = (bottleneck.latent_channels, *encoder.grid)
        self.tileable = bottleneck.tileable
        bottleneck.pixels = torch.Size(self.image_shape).numel()

    def forward(self, images: Tensor, stream: RandomStream | None = None) -> Reconstructed:
        """Reconstruct images `(B, C, H, W)`; latents are drawn from the stream, or the likeliest without one."""
        bottled: Bottled = self.bottleneck(self.encoder(images), stream)
        return Reconstructed(self._decoded(bottled.z), bottled)

    def draw(self, stream: RandomStream) -> Tensor:
        """Decode latents whose places are drawn independently of each other, `(n, C, H, W)` in [-1, 1]."""
        return self._decoded(self.bottleneck.draw(stream, self.encoder.grid)).clamp(-1, 1)

    def encode(self, images: Tensor, stream: RandomStream | None = None) -> Tensor:
        """Map images to what a model of latents learns, `(B, c, h, w)`; see `Bottleneck.latents`."""
        return self.bottleneck.latents(self.encoder(images), stream)

    def decode(self, latents: Tensor) -> Tensor:
        """Map latents `(B, c, h, w)` to images in [-1, 1]."""
        return self._decoded(self.bottleneck.settled(latents)).clamp(-1, 1)

    def _decoded(self, z: Tensor) -> Tensor:
        # latents of a quantizer are wide, weights may be of half precision
        images: Tensor = self.decoder(z.to(next(self.decoder.parameters()).dtype))
        return images


def _check_fit(encoder: ImageEncoder, bottleneck: Bottleneck, decoder: ImageDecoder) -> None:
    for given, what, taken, whose, fix in (
        (encoder.out_channels, "encoder makes {} channels", bottleneck.in_channels, "bottleneck", "out_channels"),
        (bottleneck.out_channels, "bottleneck makes {} channels", decoder.in_channels, "decoder", "in_channels"),
        (encoder.factor, "encoder makes images {} times smaller", decoder.factor, "decoder", "the same halvings"),
        (encoder.image_shape, "encoder is built for images {}", decoder.image_shape, "decoder", "image_shape"),
    ):
        if given != taken:
            raise ValueError(
                f"The {what.format(given)}, and the {type(_part(whose, encoder, bottleneck, decoder)).__name__}"
                f" ({whose}) has {taken}: give both the same ({fix})."
            )


def _part(name: str, encoder: ImageEncoder, bottleneck: Bottleneck, decoder: ImageDecoder) -> object:
    return {"encoder": encoder, "bottleneck": bottleneck, "decoder": decoder}[name]
