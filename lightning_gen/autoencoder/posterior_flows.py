r"""Posteriors that are no Gaussians: a draw of one, changed by an invertible map.

With :math:`z_0 \sim q_0(z_0 \mid x)`, a diagonal Gaussian, and the context h(x) that the encoder makes,

.. math:: z = f(z_0; h), \qquad \log q(z \mid x) = \log q_0(z_0 \mid x)
          - \log\left|\det\frac{\partial f}{\partial z_0}\right|.

An inverse autoregressive flow shifts and scales each dimension by what it makes of those before it in :math:`z_0`,

.. math:: z_i = \exp\big(a_i(z_{0, <i}, h)\big)\, z_{0, i} + b_i(z_{0, <i}, h),

so that a draw with its density takes one pass; the density of a z from elsewhere would take D of them, and is never
needed here. The masked networks are those of the package zuko.

References:
    Variational Inference with Normalizing Flows
    https://arxiv.org/abs/1505.05770
    Improving Variational Inference with Inverse Autoregressive Flow
    https://arxiv.org/abs/1606.04934
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_gen.autoencoder.flow_priors import check_at_least_1, flows_of_zuko, whole_precision


class PosteriorFlow(nn.Module, ABC):
    """An invertible map of latents, for every image another.

    Args:
        latent_dim: length D of a latent.
        context_dim: length of what the encoder tells of an image; 0 for nothing.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(self, latent_dim: int, context_dim: int) -> None:
        super().__init__()
        check_at_least_1(self, latent_dim=latent_dim)
        if context_dim < 0:
            raise ValueError(f"{type(self).__name__}: context_dim is 0 (none) or more; given was {context_dim}.")
        self.latent_dim, self.context_dim = latent_dim, context_dim

    @abstractmethod
    def forward(self, z0: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map draws of the Gaussian.

        Args:
            z0: K draws for each image, `(K, B, D)`.
            context: what the encoder tells of the images, `(B, context_dim)`.

        Returns:
            z `(K, B, D)` and the logarithm of the Jacobian's determinant in nats, `(K, B)`.
        """

    def check(self, z0: Tensor, context: Tensor) -> None:
        """Raise a ValueError for draws or a context that this flow does not take."""
        name = type(self).__name__
        if z0.ndim != 3 or z0.shape[2] != self.latent_dim:
            raise ValueError(f"{name} takes draws of shape (K, B, {self.latent_dim}), not {tuple(z0.shape)}.")
        if tuple(context.shape) != (z0.shape[1], self.context_dim):
            raise ValueError(
                f"{name} takes a context of shape ({z0.shape[1]}, {self.context_dim}), not {tuple(context.shape)}: set"
                " context_dim to what the encoder tells of an image."
            )


class AutoregressivePosterior(PosteriorFlow):
    """An inverse autoregressive flow; the identity at the start.

    Args:
        latent_dim: length D of a latent.
        context_dim: length of what the encoder tells of an image; 0 for nothing.
        transforms: number of transformations, every second one in reverse order.
        hidden: widths of the hidden layers of each one's network; None for two of 64.

    Raises:
        ValueError: for a number out of range.
        MissingExtra: where zuko is not installed.
    """

    def __init__(
        self, latent_dim: int, context_dim: int, transforms: int = 2, hidden: Sequence[int] | None = None
    ) -> None:
        super().__init__(latent_dim, context_dim)
        widths = list(hidden) if hidden is not None else [64, 64]
        check_at_least_1(self, transforms=transforms, hidden=min(widths, default=1))
        made = flows_of_zuko().MAF(latent_dim, context_dim, transforms=transforms, hidden_features=widths)
        # without its base: the Gaussian is the encoder's
        self.transform: Any = made.transform
        for one in self.transform.transforms:
            nn.init.zeros_(one.hyper[-1].weight)
            nn.init.zeros_(one.hyper[-1].bias)

    def forward(self, z0: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map draws `(K, B, D)`; see `PosteriorFlow.forward`."""
        self.check(z0, context)
        kind = next(self.parameters()).dtype
        told = context.to(kind) if self.context_dim else None
        with whole_precision(z0):
            z, logdet = self.transform(told).call_and_ladj(z0.to(kind))
        return z.to(z0.dtype), logdet.to(z0.dtype)
