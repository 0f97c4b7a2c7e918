"""Fully connected generator and discriminator, for images of any shape.

By default the generator has 128 and 256 hidden units and an output layer of C*H*W units (784 for MNIST) with a
tanh. The conditional ones append the one-hot label to the latent and to the flattened image.

References:
    Generative adversarial networks: https://arxiv.org/abs/1406.2661
    Conditional generative adversarial nets: https://arxiv.org/abs/1411.1784
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gen.errors import choose
from lightning_gen.networks.base import Discriminator, Generator, positive
from lightning_gen.networks.conditioning import LogitHead, concat_label
from lightning_gen.networks.normalization import spectral_normalize

Activation: TypeAlias = Literal["leaky_relu", "relu", "gelu", "silu", "tanh"]


def make_activation(name: Activation) -> nn.Module:
    """Return an activation by name; the leaky ReLU has slope 0.2.

    Raises:
        ValueError: for another name.
    """
    activations: dict[str, nn.Module] = {
        "leaky_relu": nn.LeakyReLU(0.2),
        "relu": nn.ReLU(),
        "gelu": nn.GELU(),
        "silu": nn.SiLU(),
        "tanh": nn.Tanh(),
    }
    return choose("activation", name, activations)


def hidden_layers(
    net: nn.Module,
    inputs: int,
    hidden: Sequence[int],
    activation: Activation,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> list[nn.Module]:
    """Make fully connected layers, each with what follows it.

    Args:
        net: the network that they are of, for the messages.
        inputs: length of the vectors that the first one takes.
        hidden: units of each.
        activation: behind each.
        batch_norm: whether each is followed by a batch norm.
        dropout: probability with which a unit is dropped, in [0, 1).

    Raises:
        ValueError: for a value outside its range.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"{type(net).__name__} takes a dropout in [0, 1), not {dropout}.")
    layers: list[nn.Module] = []
    for units in hidden:
        units = positive(net, "each number of hidden", units)
        layers.append(nn.Linear(inputs, units))
        if batch_norm:
            layers.append(nn.BatchNorm1d(units))
        layers.append(make_activation(activation))
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = units
    return layers


class MLPGenerator(Generator):
    """Fully connected generator, conditional by concatenation.

    Args:
        latent_dim: length of one latent vector.
        hidden: units of the hidden layers; the output layer of C*H*W units comes on top.
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes; None for an unconditional generator.
        activation: of the hidden layers.
        batch_norm: whether each hidden layer is followed by a batch norm.
        dropout: probability with which a hidden unit is dropped, in [0, 1).

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        latent_dim: int = 100,
        hidden: Sequence[int] = (128, 256),
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int | None = None,
        activation: Activation = "leaky_relu",
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(latent_dim, image_shape, num_classes)
        inputs = latent_dim + (num_classes or 0)
        self.layers = nn.Sequential(
            *hidden_layers(self, inputs, hidden, activation, batch_norm, dropout),
            nn.Linear(hidden[-1] if hidden else inputs, math.prod(self.image_shape)),
        )

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Make images `(B, C, H, W)` in [-1, 1] of latents `(B, latent_dim)` and labels `(B,)`."""
        self.check(z, label)
        if self.num_classes is not None and label is not None:
            z = concat_label(z, label, self.num_classes)
        return torch.tanh(self.layers(z)).view(-1, *self.image_shape)


class MLPDiscriminator(Discriminator):
    """Fully connected discriminator, conditional by concatenation.

    Args:
        hidden: units of the hidden layers.
        image_shape: `(C, H, W)` of one image.
        num_classes: number of classes; None for an unconditional discriminator.
        activation: of the hidden layers.
        dropout: probability with which a hidden unit is dropped, in [0, 1).
        spectral_norm: whether every layer is spectrally normalized.

    Raises:
        ValueError: for a value outside its range.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (256, 128),
        image_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int | None = None,
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__(image_shape, num_classes)
        inputs = math.prod(self.image_shape) + (num_classes or 0)
        self.layers = nn.Sequential(*hidden_layers(self, inputs, hidden, activation, False, dropout))
        self.head = LogitHead(hidden[-1] if hidden else inputs)
        if spectral_norm:
            spectral_normalize(self)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Judge images `(B, C, H, W)` in [-1, 1] with labels `(B,)`: logits `(B,)`."""
        self.check(x, label)
        h = x.flatten(1)
        if self.num_classes is not None and label is not None:
            h = concat_label(h, label, self.num_classes)
        logits: Tensor = self.head(self.layers(h))
        return logits
