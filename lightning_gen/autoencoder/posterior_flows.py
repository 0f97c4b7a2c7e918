"""Flows that bend a Gaussian posterior: the narrow type.

References:
    Variational Inference with Normalizing Flows
    https://arxiv.org/abs/1505.05770
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class PosteriorFlow(nn.Module, ABC):
    """A flow of latents, told what the encoder has to say of it.

    Attributes:
        context_dim: length of what it is told.
    """

    context_dim: int

    @abstractmethod
    def forward(self, z0: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(K, B, D)` with context `(B, context_dim)` to z and log |det dz / dz0| in nats, `(K, B)`."""
