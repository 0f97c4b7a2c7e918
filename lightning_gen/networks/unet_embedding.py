"""What the U-Net's residual blocks are told: noise label, class, vector and augmentation in one vector a sample."""

import math
from typing import Literal, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_gen.networks.conditioning import one_hot
from lightning_gen.networks.denoiser import Condition, DenoisingNetwork
from lightning_gen.networks.embeddings import EmbeddingOrder, PositionalEmbedding, RandomFourierEmbedding
from lightning_gen.networks.unet_blocks import initialized

EmbeddingKind: TypeAlias = Literal["positional", "fourier"]
ClassEmbedding: TypeAlias = Literal["table", "one_hot"]


def label_features(
    dim: int, kind: EmbeddingKind, order: EmbeddingOrder, freq_shift: int, fourier_scale: float
) -> PositionalEmbedding | RandomFourierEmbedding:
    """Return the sines and cosines of the noise label."""
    if kind == "fourier":
        return RandomFourierEmbedding(dim, fourier_scale, order)
    return PositionalEmbedding(dim, freq_shift=freq_shift, order=order)


class LabelNetwork(nn.Module):
    """Two linear layers with a SiLU between them.

    Args:
        inputs: width of the features.
        outputs: width of the embedding.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, outputs)
        self.out = nn.Linear(outputs, outputs)
        initialized(self.hidden)
        initialized(self.out)

    def forward(self, features: Tensor) -> Tensor:
        """Map `(B, inputs)` to `(B, outputs)`."""
        embedded: Tensor = self.out(F.silu(self.hidden(features)))
        return embedded


class ConditionEmbedding(nn.Module):
    """One vector a sample of all that is not an image or a sequence.

    Class ("one_hot") and augmentation are added to the features of the noise label, before the two linear layers;
    class ("table"), vector and second label behind them.

    Args:
        net: the network, for what it is conditional on.
        features: the sines and cosines of the noise label.
        width: width of the result.
        class_embedding: a row per class, or a linear layer of the one-hot class with zeros for "none".
    """

    def __init__(
        self,
        net: DenoisingNetwork,
        features: PositionalEmbedding | RandomFourierEmbedding,
        width: int,
        class_embedding: ClassEmbedding,
    ) -> None:
        super().__init__()
        self.features = features
        self.network = LabelNetwork(features.dim, width)
        self.second = LabelNetwork(features.dim, width) if net.two_times else None
        self.num_classes = net.num_classes
        self.table: nn.Embedding | None = None
        self.classes: nn.Linear | None = None
        if net.num_classes is not None and class_embedding == "table":
            self.table = nn.Embedding(net.label_rows, width)
        elif net.num_classes is not None:
            self.classes = nn.Linear(net.num_classes, features.dim)
            initialized(self.classes)
        self.vector = nn.Linear(net.vector_dim, width) if net.vector_dim else None
        self.augment = nn.Linear(net.augment_dim, features.dim, bias=False) if net.augment_dim else None
        for layer in (self.vector, self.augment):
            if layer is not None:
                initialized(layer)

    def forward(self, noise_label: Tensor, cond: Condition, second_label: Tensor | None) -> Tensor:
        """Embed `(B,)` and the condition as `(B, width)`, in the precision of the weights."""
        dtype = self.network.hidden.weight.dtype
        features = self.features(noise_label).to(dtype)
        if self.classes is not None and self.num_classes is not None and cond.label is not None:
            # the one-hot vector at unit variance
            hot = one_hot(cond.label, self.num_classes, dtype) * math.sqrt(self.num_classes)
            features = features + self.classes(hot)
        if self.augment is not None and cond.augment is not None:
            features = features + self.augment(cond.augment.to(dtype))
        embedded: Tensor = self.network(features)
        if self.table is not None and cond.label is not None:
            embedded = embedded + self.table(cond.label)
        if self.vector is not None and cond.vector is not None:
            embedded = embedded + self.vector(cond.vector.to(dtype))
        if self.second is not None and second_label is not None:
            embedded = embedded + self.second(self.features(second_label).to(dtype))
        return embedded
