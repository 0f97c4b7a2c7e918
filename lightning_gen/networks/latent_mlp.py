"""Fully connected encoder and decoder of vector latents, for images of any shape.

Conditional ones append the one-hot label to the flattened image and to the latent.

References:
    Auto-Encoding Variational Bayes (appendix C)
    https://arxiv.org/abs/1312.6114
    Learning Structured Output Representation using Deep Conditional Generative Models
    https://papers.nips.cc/paper/5775-learning-structured-output-representation-using-deep-conditional-generative-models
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_gen.networks.conditioning import concat_label
from lightning_gen.networks.latent import LatentDecoder, LatentEncoder
from lightning_gen.networks.mlp import Activation, hidden_layers


class MLPEncoder(LatentEncoder):
    """Fully connected encoder, conditional by concatenation.

    Args:
        hidden: units of the hidden layers.
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes; None for an unconditional encoder.
        activation: of the hidden layers.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (400,),
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int | None = None,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(image_shape, num_classes)
        inputs = math.prod(self.image_shape) + (num_classes or 0)
        self.layers = nn.Sequential(*hidden_layers(self, inputs, hidden, activation))
        self.features = hidden[-1] if hidden else inputs

    def make(self, outputs: int) -> None:
        """Make the last layer."""
        self.head = nn.Linear(self.features, outputs)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Map images `(B, C, H, W)` and labels `(B,)` to vectors `(B, outputs)`."""
        self.check(x, label)
        h = x.flatten(1)
        if self.num_classes is not None and label is not None:
            h = concat_label(h, label, self.num_classes)
        described: Tensor = self.head(self.layers(h))
        return described


class MLPDecoder(LatentDecoder):
    """Fully connected decoder, conditional by concatenation.

    Args:
        hidden: units of the hidden layers.
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes; None for an unconditional decoder.
        activation: of the hidden layers.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (400,),
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int | None = None,
        activation: Activation = "relu",
    ) -> None:
        super().__init__(image_shape, num_classes)
        self.hidden, self.activation = list(hidden), activation

    def make(self, latent_dim: int, out_channels: int) -> None:
        """Make the layers."""
        inputs = latent_dim + (self.num_classes or 0)
        self.layers = nn.Sequential(*hidden_layers(self, inputs, self.hidden, self.activation))
        _, height, width = self.image_shape
        self.head = nn.Linear(self.hidden[-1] if self.hidden else inputs, out_channels * height * width)

    @torch.no_grad()
    def start_at(self, params: Tensor) -> None:
        """Take these parameters, `(out_channels, H, W)`, as the bias of the last layer."""
        self.head.bias.copy_(params.flatten())

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Map latents `(N, latent_dim)` and labels `(N,)` to parameters `(N, out_channels, H, W)`."""
        self.check(z, label)
        if self.num_classes is not None and label is not None:
            z = concat_label(z, label, self.num_classes)
        described: Tensor = self.head(self.layers(z))
        return described.view(len(z), self.out_channels, *self.image_shape[1:])
