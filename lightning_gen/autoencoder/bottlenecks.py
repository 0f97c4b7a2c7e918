r"""What stands between an encoder and a decoder of images: the narrow type, and the Gaussian one.

The Gaussian bottleneck reads the encoder's features as mean and log variance of

.. math:: q(z \mid x) = \mathcal N(\mu(x), \operatorname{diag} \sigma^2(x))

and adds :math:`w\,\mathrm{KL}(q(z \mid x) \,\|\, \mathcal N(0, 1)) / D` to the loss, the divergence summed over the
latent's dimensions and averaged over images, D being the number of an image's dimensions: the reconstruction error is
a mean over them. With :math:`w = 1` the two are, up to constants, a bound of the likelihood per dimension.

References:
    Auto-Encoding Variational Bayes (appendix B: the divergence)
    https://arxiv.org/abs/1312.6114
    High-Resolution Image Synthesis with Latent Diffusion Models (appendix G: small weights)
    https://arxiv.org/abs/2112.10752
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.seeding import RandomStream


class Bottled(NamedTuple):
    """What a bottleneck makes of features.

    Attributes:
        z: what the decoder is given, `(B, out_channels, h, w)`; gradients pass to the features.
        loss: what is added to the training loss, a scalar, weighted already.
        logs: scalars to look at, without gradients; those that end in `loss` or `kl` are means over images.
        indices: the codes of a quantizer, int64 `(B, h, w)`, or `(B, h, w, Q)` of several; None without a codebook.
    """

    z: Tensor
    loss: Tensor
    logs: dict[str, Tensor]
    indices: Tensor | None = None


class Bottleneck(nn.Module, ABC):
    """Features to latents.

    Attributes:
        in_channels: channels of the features it takes.
        out_channels: channels of the latents it makes.
        pixels: dimensions D of an image, set by the module around before training.
        tileable: whether latents of any size can be decoded.
    """

    in_channels: int
    out_channels: int
    pixels: int = 1
    tileable: bool = True

    @property
    def latent_channels(self) -> int:
        """Channels of what a model of latents learns; here the features, before they are quantized."""
        return self.in_channels

    def latents(self, features: Tensor, stream: RandomStream | None = None) -> Tensor:
        """Return what a model of latents learns, `(B, latent_channels, h, w)`; see `forward` for the arguments."""
        return features

    def moving(self) -> list[Tensor]:
        """Return what moves while a batch passes in training, without an optimizer: buffers, and codes that restart."""
        return list(self.buffers())

    def settled(self, latents: Tensor) -> Tensor:
        """Return what the decoder is given for latents `(B, latent_channels, h, w)`, learned or generated."""
        return self(latents).z  # type: ignore[no-any-return]

    @abstractmethod
    def draw(self, stream: RandomStream, grid: tuple[int, int]) -> Tensor:
        """Draw what the decoder is given, `(n, out_channels, h, w)`, every place of the grid by itself.

        Args:
            stream: all random numbers.
            grid: `(h, w)`.
        """

    @abstractmethod
    def forward(self, features: Tensor, stream: RandomStream | None = None) -> Bottled:
        """Map features `(B, in_channels, h, w)` to latents.

        Args:
            features: of the encoder.
            stream: where random latents are drawn from; None for the most likely ones.
        """

    def check(self, features: Tensor) -> None:
        """Raise a ValueError for features of another number of channels."""
        if features.ndim != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} takes features of shape (B, {self.in_channels}, h, w), not"
                f" {tuple(features.shape)}: set the encoder's out_channels to {self.in_channels}."
            )


class GaussianBottleneck(Bottleneck):
    """The bottleneck of a KL autoencoder.

    Args:
        channels: of a latent; the features have twice as many, means before log variances.
        weight: w of the divergence; latent diffusion takes 1e-6.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(self, channels: int, weight: float = 1e-6) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"GaussianBottleneck: channels is 1 or more; given was {channels}.")
        if weight < 0:
            raise ValueError(f"GaussianBottleneck: weight is 0 or more; given was {weight}.")
        self.in_channels, self.out_channels, self.weight = 2 * channels, channels, weight

    @property
    def latent_channels(self) -> int:
        """Channels of what a model of latents learns: draws of the posterior."""
        return self.out_channels

    def latents(self, features: Tensor, stream: RandomStream | None = None) -> Tensor:
        """Return draws of the posterior, or its means, `(B, channels, h, w)`."""
        posterior = self.posterior(features)
        return posterior.mean if stream is None else posterior.sample(stream)

    def settled(self, latents: Tensor) -> Tensor:
        """Return the latents: the decoder is given them as they are."""
        return latents

    def draw(self, stream: RandomStream, grid: tuple[int, int]) -> Tensor:
        """Draw from the standard normal, `(n, channels, h, w)`."""
        return stream.normal(self.out_channels, *grid)

    def posterior(self, features: Tensor) -> DiagonalGaussian:
        """Return q(z | x) of features `(B, 2 channels, h, w)`."""
        self.check(features)
        return DiagonalGaussian.of(features)

    def forward(self, features: Tensor, stream: RandomStream | None = None) -> Bottled:
        """Draw latents, or take the means where there is no stream."""
        posterior = self.posterior(features)
        kl = posterior.kl().mean()
        z = posterior.mean if stream is None else posterior.sample(stream)
        logs = {"kl": kl.detach(), "posterior_std": posterior.std.detach().mean()}
        return Bottled(z, self.weight * kl / self.pixels, logs)
