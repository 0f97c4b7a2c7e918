r"""The VampPrior: what the encoder makes, on average, of learned pseudo-inputs.

.. math:: p(z) = \frac1K \sum_{k=1}^K q(z \mid u_k)

with K pseudo-inputs u in [-1, 1] that are learned together with the model. It is the prior that is best for the data
where the pseudo-inputs are the data.

References:
    VAE with a VampPrior (eq. 9)
    https://arxiv.org/abs/1705.07120
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.likelihoods import wide
from lightning_gen.autoencoder.priors import Prior
from lightning_gen.networks.latent import LatentEncoder
from lightning_gen.seeding import RandomStream


class VampPrior(Prior):
    """A mixture of the posteriors of pseudo-inputs.

    Args:
        latent_dim: length D of a latent.
        pseudo_inputs: their number K.
        mean: of the pixels that they start from, in [-1, 1].
        std: of the pixels that they start from.

    Raises:
        ValueError: where a number is out of range.
    """

    def __init__(self, latent_dim: int, pseudo_inputs: int = 500, mean: float = -0.7, std: float = 0.2) -> None:
        super().__init__(latent_dim)
        if pseudo_inputs < 1 or std <= 0:
            raise ValueError(
                f"VampPrior takes 1 or more pseudo_inputs and a std above 0; given were {pseudo_inputs} and {std}."
            )
        self.count, self.start = pseudo_inputs, (mean, std)

    def attach(self, encoder: LatentEncoder) -> None:
        """Take the encoder whose posteriors these are, before anything else.

        Raises:
            ValueError: for a conditional encoder, which would have to be told the classes of pseudo-inputs.
        """
        if encoder.num_classes is not None:
            raise ValueError("VampPrior has no classes: use another prior, or an encoder with num_classes=null.")
        # held in a list, for it is the module's around and shall not be part of this one; copies are made together
        self._encoder = [encoder]
        mean, std = self.start
        self.pseudo = nn.Parameter(mean + std * torch.randn(self.count, *encoder.image_shape))

    def posteriors(self) -> DiagonalGaussian:
        """Return q(z | u) of all pseudo-inputs, means `(K, D)`."""
        features = self._encoder[0](F.hardtanh(self.pseudo))
        return DiagonalGaussian.of(wide(features[:, : 2 * self.latent_dim]))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, `(...)` of `(..., D)`."""
        components = self.posteriors()
        each = components.log_prob(z.reshape(-1, 1, self.latent_dim))
        return (torch.logsumexp(each, dim=1) - math.log(self.count)).view(z.shape[:-1])

    def sample(self, stream: RandomStream) -> Tensor:
        """Draw latents `(n, D)`."""
        components = self.posteriors()
        chosen = stream.categorical(components.mean.new_full((self.count,), 1 / self.count))
        noise = stream.normal(self.latent_dim).to(components.mean)
        return components.mean[chosen] + components.std[chosen] * noise
