r"""A trained autoencoder as a part of another model: frozen, its latents whitened.

A model of latents learns :math:`y = (E(x) - m) / s`, m and s being mean and standard deviation of each channel over
training images, and an image is :math:`D(s\,y + m)`. m and s are in the checkpoint, with the weights: nothing else is
needed to sample.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (appendix G: the scale of latents)
    https://arxiv.org/abs/2112.10752
"""

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_gen.autoencoder.tiling import Tiling
from lightning_gen.checkpoint_files import find_checkpoint
from lightning_gen.networks.autoencoding import LatentNetwork

C = TypeVar("C", bound="Codec")


@runtime_checkable
class HasLatents(Protocol):
    """A module that can be a codec: an `Autoencoder`, a `VAE`."""

    def latent_network(self, weights: str | None = None) -> tuple[LatentNetwork, dict[str, Any] | None]:
        """Return the network, and class path and arguments that build it; None where they are not plain data.

        Args:
            weights: which weights, as `sample` takes them.
        """
        ...


class Codec(nn.Module):
    """A frozen autoencoder between images and whitened latents.

    Args:
        network: the autoencoder's network.
        tile: side of the tiles, in latent pixels, in which larger latents are decoded; None decodes in one piece.
        whiten: how many training images mean and standard deviation are taken from; 0 leaves latents as they are.

    Attributes:
        mean: m, `(c, 1, 1)`.
        std: s, `(c, 1, 1)`.
        whitened: whether m and s have been taken from data.
    """

    mean: Tensor
    std: Tensor
    whitened: Tensor

    def __init__(self, network: LatentNetwork, tile: int | None = None, whiten: int = 4096) -> None:
        super().__init__()
        if whiten < 0:
            raise ValueError(f"whiten is a number of images, 0 or more; given was {whiten}.")
        if tile is not None and not network.tileable:
            raise ValueError("The codec's latents are in two levels and are not decoded in tiles: leave tile out.")
        self.network = network.requires_grad_(False)
        self.tiling = None if tile is None else Tiling(tile, tile // 4)
        self.whiten = whiten
        channels = network.latent_shape[0]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
        self.register_buffer("whitened", torch.tensor(False))
        self.eval()

    def train(self: C, mode: bool = True) -> C:
        """Stay in evaluation mode, whatever is asked of the module around."""
        return super().train(False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape `(C, H, W)` of an image."""
        return self.network.image_shape

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape `(c, h, w)` of a latent."""
        return self.network.latent_shape

    @torch.no_grad()
    def raw(self, images: Tensor) -> Tensor:
        """Map images in [-1, 1] to latents before they are whitened: the means, where latents are drawn."""
        return self.network.encode(images)

    def whitening(self, raw: Tensor) -> Tensor:
        """Map latents `(B, c, h, w)` to whitened ones."""
        return (raw - self.mean) / self.std

    def encode(self, images: Tensor) -> Tensor:
        """Map images in [-1, 1], `(B, C, H, W)`, to whitened latents `(B, c, h, w)`, without gradients."""
        return self.whitening(self.raw(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Map whitened latents `(B, c, h, w)` to images in [-1, 1], `(B, C, H, W)`."""
        raw = latents * self.std + self.mean
        dtype = next((p.dtype for p in self.network.parameters()), raw.dtype)
        if self.tiling is None:
            return self.network.decode(raw.to(dtype))
        factor = self.image_shape[1] // self.latent_shape[1]
        return self.tiling(self.network.decode, raw.to(dtype), factor)

    def learn(self, raw: Iterable[Tensor]) -> None:
        """Take mean and standard deviation from latents, given in batches `(B, c, h, w)`.

        Raises:
            ValueError: where a channel is the same everywhere, or there are none.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in raw:
            values = batch.double().transpose(0, 1).flatten(1).cpu()
            count += values.shape[1]
            total, squares = total + values.sum(1), squares + values.square().sum(1)
        if not count:
            raise ValueError("Latents are whitened by those of training images, of which there are none.")
        mean = total / count
        variance = squares / count - mean.square()
        self.take(mean, variance.clamp(min=0).sqrt())

    def take(self, mean: Tensor, std: Tensor) -> None:
        """Whiten by this mean and standard deviation of each channel, `(c,)`."""
        dead = torch.nonzero(~(std > 1e-6)).flatten().tolist()
        if dead:
            raise ValueError(
                f"Channels {dead} of the codec's latents are the same for all training images (or NaN): the codec has"
                " not learned from these data, or has collapsed. Train it longer, or with a smaller weight of its"
                " divergence; or leave its latents as they are with whiten=0."
            )
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_(std.view(-1, 1, 1))
        self.whitened.fill_(True)

    def fingerprint(self) -> str:
        """Hash of the network's weights, 16 hexadecimal digits: what cached latents were made by."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def described(self) -> dict[str, Any] | None:
        """Return class path and arguments of a codec of the same form, without a file; None where they are unknown."""
        return None


class TrainedCodec(Codec):
    """The codec of a checkpoint.

    A model that was trained with it holds its weights, and needs the file no more.

    Args:
        checkpoint: of an `Autoencoder` or a `VAE`, or its run folder.
        weights: "raw", "ema", ... as `sample` takes them; the first average where there is one.
        tile: side of the tiles, in latent pixels, in which larger latents are decoded; None decodes in one piece.
        whiten: how many training images mean and standard deviation are taken from; 0 leaves latents as they are.

    Raises:
        ValueError: where the checkpoint holds a model of another kind.
    """

    def __init__(
        self, checkpoint: str, weights: str | None = None, tile: int | None = None, whiten: int = 4096
    ) -> None:
        from lightning_gen.checkpoints import load_module

        path = find_checkpoint(checkpoint)
        module = load_module(path)
        if not isinstance(module, HasLatents):
            raise ValueError(
                f"The codec is an Autoencoder or a VAE; {path} holds a {type(module).__name__}, which has no latents to"
                " decode."
            )
        network, self._network = module.latent_network(weights)
        super().__init__(network, tile, whiten)
        self._arguments = {"tile": tile, "whiten": whiten}

    def described(self) -> dict[str, Any] | None:
        """Return class path and arguments of a `Codec` with the network that the checkpoint describes."""
        if self._network is None:
            return None
        return {
            "class_path": f"{Codec.__module__}.{Codec.__qualname__}",
            "init_args": {"network": self._network, **self._arguments},
        }
