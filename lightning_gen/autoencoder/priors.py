r"""What latents are drawn from: the narrow type, and the standard normal.

A prior tells log p(z) and draws z. Where its divergence from a Gaussian posterior has no closed form, one draw
estimates it: :math:`\log q(z \mid x) - \log p(z)`.

References:
    Auto-Encoding Variational Bayes
    https://arxiv.org/abs/1312.6114
"""

import math
from abc import ABC, abstractmethod

from torch import Tensor, nn

from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.seeding import RandomStream


class Prior(nn.Module, ABC):
    """A distribution of latent vectors.

    Args:
        latent_dim: length D of a latent.

    Raises:
        ValueError: where it is not positive.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"{type(self).__name__}: latent_dim is 1 or more; given was {latent_dim}.")
        self.latent_dim = latent_dim

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, `(...)` of `(..., D)`."""

    @abstractmethod
    def sample(self, stream: RandomStream) -> Tensor:
        """Draw latents `(n, D)`, n being the stream's."""

    def kl(self, posterior: DiagonalGaussian) -> Tensor | None:
        """Return each dimension's divergence of q(z | x) from p(z) in nats, `(B, D)`; None without a closed form."""
        return None


class StandardNormal(Prior):
    """Independent standard normal dimensions.

    Args:
        latent_dim: length D of a latent.
    """

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, `(...)` of `(..., D)`."""
        return -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)

    def sample(self, stream: RandomStream) -> Tensor:
        """Draw latents `(n, D)`, n being the stream's."""
        return stream.normal(self.latent_dim)

    def kl(self, posterior: DiagonalGaussian) -> Tensor:
        """Return each dimension's divergence of q(z | x) from p(z) in nats, `(B, D)`."""
        return posterior.kl_per_dimension()
