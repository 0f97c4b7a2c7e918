"""What a trained autoencoder of images does: it encodes, decodes and reconstructs them, and becomes a codec."""

from abc import ABC
from typing import Any, cast

import torch
from torch import Tensor

from lightning_gen.autoencoder.net import AutoencoderNet
from lightning_gen.one_network import OneNetwork
from lightning_gen.seeding import RandomStream
from lightning_gen.stepping import evaluating


class ImageCoder(OneNetwork, ABC):
    """An encoder, a bottleneck and a decoder of images; see `Autoencoder`, which trains them.

    Attributes:
        net: the three.
    """

    net: AutoencoderNet

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape `(c, h, w)` of a latent."""
        return self.net.latent_shape

    def draw(  # type: ignore[override]  # the options of `sample` are the family's own
        self, stream: RandomStream, n: int, cond: None = None, *, weights: str | None = None
    ) -> Tensor:
        """Draw images `(n, C, H, W)` in [-1, 1] from latents whose places are independent of each other.

        They look like the texture of the data at best: a model of the latents (`Diffusion` with a codec) draws images.

        Args:
            stream: all random numbers.
            n: how many.
            cond: nothing; there are no classes.
            weights: "raw", "ema" or "ema-<half-life>"; the first average where there is one.
        """
        if cond is not None:
            raise ValueError("An Autoencoder has no classes; cond was given.")
        net = self._net(weights)
        with evaluating(net):
            images = net.draw(stream)
        return images.float() if images.dtype in (torch.bfloat16, torch.float16) else images

    @torch.no_grad()
    def encode(self, images: Tensor, stream: RandomStream | None = None, *, weights: str | None = None) -> Tensor:
        """Map images in [-1, 1], `(B, C, H, W)`, to latents `(B, c, h, w)`; see `LatentNetwork.encode`."""
        net = self._net(weights)
        with evaluating(net):
            return net.encode(images, stream)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, weights: str | None = None) -> Tensor:
        """Map latents `(B, c, h, w)` to images in [-1, 1], `(B, C, H, W)`."""
        net = self._net(weights)
        with evaluating(net):
            return net.decode(latents)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, *, weights: str | None = None) -> Tensor:
        """Encode and decode images in [-1, 1], `(B, C, H, W)`, by the likeliest latents."""
        net = self._net(weights)
        with evaluating(net):
            return net(images).image.clamp(-1, 1)  # type: ignore[no-any-return]

    def interpolate(self, first: Tensor, second: Tensor, steps: int = 8, *, weights: str | None = None) -> Tensor:
        """Decode what lies between the latents of images `(B, C, H, W)`: `(B, steps, C, H, W)`, both ends included."""
        if steps < 2:
            raise ValueError(f"An interpolation has 2 steps or more, its ends; given was {steps}.")
        a, b = self.encode(first, weights=weights), self.encode(second, weights=weights)
        shares = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype)
        return torch.stack([self.decode(torch.lerp(a, b, share), weights=weights) for share in shares], dim=1)

    def latent_network(self, weights: str | None = None) -> tuple[AutoencoderNet, dict[str, Any] | None]:
        """Return what a codec is made of; see `codec.HasLatents`."""
        parts = {name: self.hparams.get(name) for name in ("encoder", "bottleneck", "decoder")}
        if not all(isinstance(part, dict) for part in parts.values()):
            return self._net(weights), None
        path = f"{AutoencoderNet.__module__}.{AutoencoderNet.__qualname__}"
        return self._net(weights), {"class_path": path, "init_args": parts}

    def _net(self, weights: str | None) -> AutoencoderNet:
        return cast(AutoencoderNet, self.net_ema.pick(self.net, weights))
