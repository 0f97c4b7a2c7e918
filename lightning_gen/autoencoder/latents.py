r"""How latents are inferred and drawn: the narrow type, and one layer of Gaussian latents.

An encoder's features describe :math:`q(z \mid x)`; with K draws z of it an objective is told

.. math:: \log q(z \mid x), \qquad \log p(z), \qquad \mathrm{KL}(q(z \mid x) \,\|\, p(z))

the divergence in closed form where there is one. A flow may bend the Gaussian :math:`q_0`: with
:math:`z = f(z_0; c(x))`, :math:`\log q(z \mid x) = \log q_0(z_0 \mid x) - \log |\det \partial f / \partial z_0|`.

References:
    Auto-Encoding Variational Bayes
    https://arxiv.org/abs/1312.6114
    Variational Inference with Normalizing Flows
    https://arxiv.org/abs/1505.05770
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.likelihoods import wide
from lightning_gen.autoencoder.posterior_flows import PosteriorFlow
from lightning_gen.autoencoder.priors import Prior, StandardNormal
from lightning_gen.seeding import RandomStream


class Inferred(NamedTuple):
    """Latents drawn for images, and what is known of them; K draws of B images.

    Attributes:
        z: what the decoder is given, `(K, B, D)`.
        log_q: log q(z | x) in nats, `(K, B)`.
        log_p: log p(z) in nats, `(K, B)`.
        kl: divergences of q from p, given what was drawn above, of every dimension of every layer `(K, B, G)`; where
            they have no closed form, log q - log p of each draw, `(K, B, 1)`.
        posterior: q(z | x), where z is drawn of it without a flow or further layers.
    """

    z: Tensor
    log_q: Tensor
    log_p: Tensor
    kl: Tensor
    posterior: DiagonalGaussian | None = None


class LatentModel(nn.Module, ABC):
    """A distribution of latents: its prior, and what features say of it.

    Attributes:
        inputs: length of the features it takes.
        latent_dim: length D of what the decoder is given.
        noise_dim: normal numbers that a draw takes.
        layers: dimensions of each layer of latents.
    """

    inputs: int
    latent_dim: int
    noise_dim: int
    layers: tuple[int, ...]

    @abstractmethod
    def infer(self, features: Tensor, noise: Tensor) -> Inferred:
        """Draw latents of images.

        Args:
            features: of the encoder, `(B, inputs)`.
            noise: standard normal, `(K, B, noise_dim)`.
        """

    @abstractmethod
    def mean(self, features: Tensor) -> Tensor:
        """Return the most likely latents `(B, D)` of features `(B, inputs)`, layer by layer."""

    @abstractmethod
    def sample(self, stream: RandomStream, temperature: float = 1.0) -> Tensor:
        """Draw latents `(n, D)` from the prior.

        Args:
            stream: n rows of random numbers.
            temperature: factor of the deviations from the prior's means.
        """


class GaussianLatents(LatentModel):
    """One vector of latents, Gaussian or bent by a flow.

    Args:
        latent_dim: its length D.
        prior: p(z); None for the standard normal.
        flow: bends the posterior; None for none.

    Raises:
        ValueError: for a prior of another length.
    """

    def __init__(self, latent_dim: int, prior: Prior | None = None, flow: PosteriorFlow | None = None) -> None:
        super().__init__()
        self.prior = prior if prior is not None else StandardNormal(latent_dim)
        if self.prior.latent_dim != latent_dim:
            raise ValueError(
                f"The prior is of latents of length {self.prior.latent_dim}, the model has latent_dim={latent_dim}:"
                f" set latent_dim of the prior to {latent_dim}."
            )
        self.flow = flow
        self.latent_dim = self.noise_dim = latent_dim
        self.inputs = 2 * latent_dim + (0 if flow is None else flow.context_dim)
        self.layers = (latent_dim,)

    def posterior(self, features: Tensor) -> DiagonalGaussian:
        """Return the Gaussian that features `(B, inputs)` describe; a flow has not bent it yet."""
        return DiagonalGaussian.of(wide(features[:, : 2 * self.latent_dim]))

    def infer(self, features: Tensor, noise: Tensor) -> Inferred:
        """Draw latents of images."""
        posterior = self.posterior(features)
        z = posterior.mean + posterior.std * noise.to(posterior.mean)
        log_q = posterior.log_prob(z)
        kl = self.prior.kl(posterior) if self.flow is None else None
        if self.flow is not None:
            z, logdet = self.flow(z, wide(features[:, 2 * self.latent_dim :]))
            log_q = log_q - logdet
        log_p = self.prior.log_prob(z)
        each = (log_q - log_p).unsqueeze(-1) if kl is None else kl.expand(len(z), *kl.shape)
        return Inferred(z, log_q, log_p, each, posterior if self.flow is None else None)

    def mean(self, features: Tensor) -> Tensor:
        """Return the posterior's mean, bent by the flow."""
        mean = self.posterior(features).mean
        if self.flow is not None:
            mean = self.flow(mean.unsqueeze(0), wide(features[:, 2 * self.latent_dim :]))[0][0]
        return mean

    def sample(self, stream: RandomStream, temperature: float = 1.0) -> Tensor:
        """Draw latents `(n, D)` from the prior; of others than the standard normal, with temperature 1.

        Raises:
            ValueError: for another temperature of a prior that has none.
        """
        if temperature != 1 and not isinstance(self.prior, StandardNormal):
            raise ValueError(
                f"A temperature is a factor of the standard normal's draws; the prior is a {type(self.prior).__name__}:"
                " leave temperature at 1."
            )
        return temperature * self.prior.sample(stream)
