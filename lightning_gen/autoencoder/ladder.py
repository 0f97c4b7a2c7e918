r"""Several layers of latents, inferred from the top down: the ladder VAE.

Features :math:`d_1, \ldots, d_L` go up from the encoder and tell of each layer n an estimate
:math:`\hat\mu_n, \hat\sigma_n^2`. On the way down the prior of a layer is told by the one above,
:math:`p(z_n \mid z_{n+1}) = \mathcal N(\mu_{p,n}, \sigma_{p,n}^2)`, and the posterior joins the two, each by its
precision:

.. math::
    \sigma_{q,n}^2 = \frac{1}{\hat\sigma_n^{-2} + \sigma_{p,n}^{-2}}, \qquad
    \mu_{q,n} = \sigma_{q,n}^2 \left( \hat\mu_n \hat\sigma_n^{-2} + \mu_{p,n} \sigma_{p,n}^{-2} \right)
    \qquad \text{(eq. 17 to 19)}.

At the top :math:`p(z_L) = \mathcal N(0, 1)` and :math:`q(z_L \mid x)` is the estimate itself. The decoder is given
:math:`z_1`. The layers have no batch norm, which the paper's have.

References:
    Ladder Variational Autoencoders
    https://arxiv.org/abs/1602.02282
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.latents import Inferred, LatentModel
from lightning_gen.autoencoder.likelihoods import wide
from lightning_gen.networks.mlp import Activation, hidden_layers, make_activation
from lightning_gen.seeding import RandomStream


class Ladder(LatentModel):
    """Layers of Gaussian latents, merged from the top down.

    Args:
        latent_dims: of each layer, from the one that the decoder is given up to the top.
        hidden: units between the layers, from the encoder's features upwards; as many as there are layers.
        activation: of the hidden layers.

    Raises:
        ValueError: for no layer, or other numbers of layers.
    """

    def __init__(
        self, latent_dims: Sequence[int] = (32, 16), hidden: Sequence[int] = (256, 128), activation: Activation = "relu"
    ) -> None:
        super().__init__()
        if not latent_dims or len(latent_dims) != len(hidden) or min(*latent_dims, *hidden) < 1:
            raise ValueError(
                "A Ladder has one or more layers and a number of hidden units for each; given were latent_dims="
                f"{list(latent_dims)} and hidden={list(hidden)}."
            )
        self.layers = tuple(latent_dims)
        self.inputs, self.latent_dim, self.noise_dim = hidden[0], latent_dims[0], sum(latent_dims)
        self.first = make_activation(activation)
        self.up = nn.ModuleList(
            nn.Sequential(*hidden_layers(self, below, [above], activation)) for below, above in pairwise(hidden)
        )
        self.estimates = nn.ModuleList(
            nn.Linear(units, 2 * dim) for units, dim in zip(hidden, latent_dims, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Sequential(*hidden_layers(self, above, [units], activation), nn.Linear(units, 2 * dim))
            for dim, above, units in zip(latent_dims[:-1], latent_dims[1:], hidden[:-1], strict=True)
        )

    def _estimates(self, features: Tensor) -> list[DiagonalGaussian]:
        """Go up: return what the features say of each layer, the lowest first."""
        d: Tensor = self.first(features)
        told = [self.estimates[0](d)]
        for up, estimate in zip(self.up, list(self.estimates)[1:], strict=True):
            d = up(d)
            told.append(estimate(d))
        return [DiagonalGaussian.of(wide(one)) for one in told]

    def _prior(self, layer: int, above: Tensor | None, like: Tensor) -> DiagonalGaussian:
        """Return the prior of a layer, told by the latents above `(..., D)`; the top's is the standard normal."""
        if above is None:
            return DiagonalGaussian(torch.zeros_like(like), torch.zeros_like(like))
        # latents are as wide as the noise, weights may be of half precision
        told: Tensor = self.down[layer](above.to(next(self.down.parameters()).dtype))
        mean, logvar = wide(told).chunk(2, dim=-1)
        # eight deviations' worth either way, so that a layer nobody uses cannot run off
        return DiagonalGaussian(mean, logvar.clamp(-16, 16))

    def _downwards(
        self, features: Tensor, noise: list[Tensor] | None
    ) -> Iterator[tuple[Tensor, DiagonalGaussian, DiagonalGaussian]]:
        """Go down: give each layer's latents, posterior and prior, the top first; without noise, the means."""
        above: Tensor | None = None
        estimates = self._estimates(features)
        for layer in reversed(range(len(self.layers))):
            estimate = estimates[layer]
            prior = self._prior(layer, above, estimate.mean)
            posterior = estimate if above is None else merged(estimate, prior)
            above = (
                posterior.mean if noise is None else posterior.mean + posterior.std * noise[layer].to(posterior.mean)
            )
            yield above, posterior, prior

    def infer(self, features: Tensor, noise: Tensor) -> Inferred:
        """Draw latents of images, the top first; the divergences are in the order of `layers`."""
        log_q, log_p, divergences = [], [], []
        for z, posterior, prior in self._downwards(features, list(torch.split(noise, list(self.layers), dim=-1))):
            log_q.append(log_density(z, posterior))
            log_p.append(log_density(z, prior))
            divergences.append(divergence(posterior, prior).expand_as(z))
        kl = torch.cat(divergences[::-1], dim=-1)
        return Inferred(z, torch.stack(log_q).sum(0), torch.stack(log_p).sum(0), kl)

    def mean(self, features: Tensor) -> Tensor:
        """Return the lowest layer's means, where those above are at theirs."""
        *_, (z, _, _) = self._downwards(features, None)
        return z

    def sample(self, stream: RandomStream, temperature: float = 1.0) -> Tensor:
        """Draw latents of the lowest layer `(n, D)`, from the top down."""
        z = temperature * stream.normal(self.layers[-1])
        for layer in reversed(range(len(self.layers) - 1)):
            prior = self._prior(layer, z, z)
            z = prior.mean + temperature * prior.std * stream.normal(self.layers[layer]).to(prior.mean)
        return z


def merged(first: DiagonalGaussian, second: DiagonalGaussian) -> DiagonalGaussian:
    """Return the normalized product of two Gaussians, whose means are weighted by their precisions."""
    logvar = -torch.logaddexp(-first.logvar, -second.logvar)
    mean = first.mean * torch.exp(logvar - first.logvar) + second.mean * torch.exp(logvar - second.logvar)
    return DiagonalGaussian(mean, logvar)


def log_density(z: Tensor, of: DiagonalGaussian) -> Tensor:
    """Return the log-density in nats, summed over the last dimension only; leading dimensions are broadcast."""
    rows = DiagonalGaussian(*(part.expand_as(z).flatten(0, 1) for part in of))
    return rows.log_prob(z.flatten(0, 1)).view(z.shape[:-1])


def divergence(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    r"""Return each dimension's KL(q || p) in nats, 0 or more.

    .. math:: \tfrac12 \left[ (\mu_q - \mu_p)^2 / \sigma_p^2 + \sigma_q^2 / \sigma_p^2 - 1
        - \log (\sigma_q^2 / \sigma_p^2) \right]
    """
    ratio = q.logvar - p.logvar
    return 0.5 * ((q.mean - p.mean).square() * torch.exp(-p.logvar) + torch.expm1(ratio) - ratio)
