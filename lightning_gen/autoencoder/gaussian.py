r"""The diagonal Gaussian that encoders describe: its draws, density and divergence from the standard normal.

.. math::
    \log q(z) = -\tfrac12 \sum_i \left[ \log 2\pi + \log\sigma_i^2 + (z_i - \mu_i)^2 / \sigma_i^2 \right], \qquad
    \mathrm{KL}(q \,\|\, \mathcal N(0, 1)) = \tfrac12 \sum_i \left[ \mu_i^2 + \sigma_i^2 - 1 - \log\sigma_i^2 \right]

in nats, summed over the dimensions of one sample.

References:
    Auto-Encoding Variational Bayes (appendix B)
    https://arxiv.org/abs/1312.6114
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_gen.seeding import RandomStream

LOGVAR_RANGE = (-30.0, 20.0)
"""Log variances are kept in this range, beyond which their exponential is of no use in float32."""


class DiagonalGaussian(NamedTuple):
    """Gaussians with independent dimensions, one a sample.

    Attributes:
        mean: `(B, ...)`.
        logvar: logarithms of the variances, of the same shape.
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, described: Tensor) -> "DiagonalGaussian":
        """Read means and log variances `(B, 2 D, ...)`, means first, along dimension 1."""
        mean, logvar = described.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    @property
    def std(self) -> Tensor:
        """Standard deviations."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, stream: RandomStream) -> Tensor:
        """Draw one point of each, through which gradients reach mean and variance."""
        noise = stream.normal(*self.mean.shape[1:]).to(self.mean.dtype)
        return torch.addcmul(self.mean, self.std, noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z) in nats, `(B,)`; further leading dimensions of `z` are kept, `(K, B)` of `(K, B, ...)`."""
        error = (z - self.mean).square() * torch.exp(-self.logvar)
        each = -0.5 * (math.log(2 * math.pi) + self.logvar + error)
        return each.flatten(z.ndim - self.mean.ndim + 1).sum(-1)

    def kl_per_dimension(self) -> Tensor:
        """Return each dimension's divergence from the standard normal, in nats, of the shape of the mean; 0 or more."""
        # expm1 keeps the digits of a variance near 1, where the divergence is the difference of two like numbers
        return 0.5 * (self.mean.square() + torch.expm1(self.logvar) - self.logvar)

    def kl(self) -> Tensor:
        """Return the divergence from the standard normal in nats, `(B,)`."""
        return self.kl_per_dimension().flatten(1).sum(1)
