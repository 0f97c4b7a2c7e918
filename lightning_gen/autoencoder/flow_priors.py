r"""Priors that are fitted to the latents of a trained autoencoder: a normalizing flow, and a mixture of Gaussians.

The latents that an encoder makes of the data are seldom standard normal, and a decoder makes poor images of latents
that it has never met. A prior that is fitted to them, by `autoencoder.fitting`, draws such as it has:

.. math::
    \log p(z) = \log \mathcal N\big(f(u); 0, I\big) + \log\left|\det\frac{\partial f}{\partial u}\right|
    - \sum_i \log s_i, \qquad u_i = \frac{z_i - m_i}{s_i},

with f a masked autoregressive flow (affine, or of rational-quadratic splines, which leave what is beyond [-5, 5] alone:
so latents are standardized), or

.. math:: p(z) = \sum_k \pi_k\, \mathcal N(z; \mu_k, L_k L_k^\top).

The flows are those of the package zuko; their noise comes from the stream that a prior is given.

References:
    Masked Autoregressive Flow for Density Estimation
    https://arxiv.org/abs/1705.07057
    Neural Spline Flows
    https://arxiv.org/abs/1906.04032
    From Variational to Deterministic Autoencoders (a mixture of Gaussians, fitted after training)
    https://arxiv.org/abs/1903.12436
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from lightning_gen.autoencoder.priors import Prior
from lightning_gen.errors import MissingExtra, choose
from lightning_gen.seeding import RandomStream

FlowName: TypeAlias = Literal["nsf", "maf"]


def flows_of_zuko() -> Any:
    """Return the module `zuko.flows`.

    Imported where it is needed: it is an extra, and switches the checks of torch.distributions off.

    Raises:
        MissingExtra: where it is not installed.
    """
    try:
        import zuko
    except ImportError as error:
        raise MissingExtra(
            "Flows of latents need the package zuko, which is not installed: pip install 'lightning_gen[flows]'"
        ) from error
    return zuko.flows


class FlowPrior(Prior):
    """A normalizing flow of latents.

    Args:
        latent_dim: length D of a latent.
        kind: "nsf" for splines, "maf" for shifts and scales.
        transforms: number of autoregressive transformations, every second one in reverse order.
        hidden: widths of the hidden layers of each one's network; None for two of 64.
        bins: of a spline.
        passes: passes of the network that a draw takes in each transformation: None for D, which is fully
            autoregressive, 2 for coupling layers.

    Raises:
        ValueError: for a number out of range, or another kind.
        MissingExtra: where zuko is not installed.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        latent_dim: int,
        kind: FlowName = "nsf",
        transforms: int = 3,
        hidden: Sequence[int] | None = None,
        bins: int = 8,
        passes: int | None = None,
    ) -> None:
        super().__init__(latent_dim)
        own: dict[str, Any] = choose("flow of latents", kind, {"nsf": {"bins": bins}, "maf": {}})
        widths = list(hidden) if hidden is not None else [64, 64]
        check_at_least_1(self, transforms=transforms, bins=bins, hidden=min(widths, default=1))
        flows = flows_of_zuko()
        made = {"nsf": flows.NSF, "maf": flows.MAF}[kind]
        self.flow = made(latent_dim, transforms=transforms, hidden_features=widths, passes=passes, **own)
        self.register_buffer("shift", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))

    @torch.no_grad()
    def standardize(self, latents: Tensor) -> None:
        """Measure what latents `(N, D)` are shifted and scaled by before they enter the flow."""
        self.shift.copy_(latents.mean(0))
        # a dimension that never changes keeps its scale
        std = latents.std(0, correction=0)
        self.scale.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, `(...)` of `(..., D)`."""
        with whole_precision(z):
            density: Tensor = self.flow().log_prob((z.to(self.shift.dtype) - self.shift) / self.scale)
        return density - self.scale.log().sum()

    def sample(self, stream: RandomStream) -> Tensor:
        """Draw latents `(n, D)`, n being the stream's."""
        noise = stream.normal(self.latent_dim).to(self.shift.dtype)
        with whole_precision(noise):
            drawn: Tensor = self.flow().transform.inv(noise)
        return self.shift + self.scale * drawn


class GaussianMixturePrior(Prior):
    """A mixture of Gaussians with full covariances; nothing of it is trained by gradients.

    Args:
        latent_dim: length D of a latent.
        components: number K of Gaussians; all are standard normal until they are fitted.

    Attributes:
        weights: pi, `(K,)`.
        means: mu, `(K, D)`.
        scale_trils: L, lower triangular, `(K, D, D)`.

    Raises:
        ValueError: for a number out of range.
    """

    weights: Tensor
    means: Tensor
    scale_trils: Tensor

    def __init__(self, latent_dim: int, components: int = 10) -> None:
        super().__init__(latent_dim)
        check_at_least_1(self, components=components)
        self.components = components
        self.register_buffer("weights", torch.full((components,), 1 / components))
        self.register_buffer("means", torch.zeros(components, latent_dim))
        self.register_buffer("scale_trils", torch.eye(latent_dim).repeat(components, 1, 1))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, `(...)` of `(..., D)`."""
        offsets = z.to(self.means.dtype).reshape(1, -1, self.latent_dim) - self.means[:, None]
        white = torch.linalg.solve_triangular(self.scale_trils, offsets.mT, upper=False)
        volumes = self.scale_trils.diagonal(dim1=1, dim2=2).log().sum(1)
        normal = -0.5 * white.square().sum(1) - 0.5 * self.latent_dim * math.log(2 * math.pi) - volumes[:, None]
        return torch.logsumexp(normal + self.weights.log()[:, None], dim=0).view(z.shape[:-1])

    def sample(self, stream: RandomStream) -> Tensor:
        """Draw latents `(n, D)`, n being the stream's."""
        chosen = stream.categorical(self.weights)
        noise = stream.normal(self.latent_dim).to(self.means.dtype)
        with whole_precision(noise):
            return self.means[chosen] + (self.scale_trils[chosen] @ noise[:, :, None]).squeeze(2)


def whole_precision(z: Tensor) -> torch.autocast:
    """Switch autocast off: in bfloat16 the logarithm of a scale has two digits, and the way back drifts."""
    return torch.autocast(z.device.type, enabled=False)


def check_at_least_1(owner: object, **numbers: int) -> None:
    """Raise a ValueError for the first of the numbers that is below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{type(owner).__name__}: {name} is 1 or more; given was {number}.")
