r"""How a network is told the class: concatenation, conditional batch norm, projection, auxiliary classifier.

- Concatenation: the one-hot label joins the latent (generator) or, as constant maps, the image's channels
  (discriminator).
- Conditional batch norm: :math:`\gamma_y\,\hat h + \beta_y`, the gain and bias of each channel being those of
  the class, with :math:`\gamma_y = 1 + g_y`.
- Projection: :math:`D(x, y) = \psi(h) + \langle e_y, h \rangle` (eq. 3 of the paper), the log ratio of two
  densities split in a part without and a part with the label; h are the pooled features of x.
- Auxiliary classifier: the discriminator is not told the class but has to find it, from the same h.

References:
    Conditional generative adversarial nets: https://arxiv.org/abs/1411.1784
    A learned representation for artistic style: https://arxiv.org/abs/1610.07629
    cGANs with projection discriminator: https://arxiv.org/abs/1802.05637
    Conditional image synthesis with auxiliary classifier GANs: https://arxiv.org/abs/1610.09585
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lightning_gen.networks.base import DiscriminatorOutput
from lightning_gen.networks.normalization import NormName, make_norm

GeneratorConditioning: TypeAlias = Literal["none", "concat", "cbn"]
DiscriminatorConditioning: TypeAlias = Literal["none", "concat", "projection", "auxiliary"]


def one_hot(label: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """Turn labels `(B,)` into one-hot rows `(B, num_classes)`."""
    # A comparison, because torch's one_hot reads the labels on some devices and so waits for them.
    return (label[:, None] == torch.arange(num_classes, device=label.device)).to(dtype)


def concat_label(features: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Append the one-hot label to vectors: `(B, F)` to `(B, F + num_classes)`."""
    return torch.cat([features, one_hot(label, num_classes, features.dtype)], dim=1)


def concat_label_maps(images: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Append a constant map per class, 1 for the label's, else 0: `(B, C, H, W)` to `(B, C + K, H, W)`."""
    maps = one_hot(label, num_classes, images.dtype)[:, :, None, None]
    return torch.cat([images, maps.expand(-1, -1, *images.shape[2:])], dim=1)


class ConditionalBatchNorm2d(nn.Module):
    """Batch normalization with a gain and a bias per class.

    Args:
        channels: number of channels C.
        num_classes: number of classes K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        # Held, not derived from: SyncBatchNorm.convert_sync_batchnorm replaces all that is a batch norm.
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.gain = nn.Embedding(num_classes, channels)
        self.bias = nn.Embedding(num_classes, channels)
        nn.init.normal_(self.gain.weight, std=0.02)
        nn.init.zeros_(self.bias.weight)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Normalize `(B, C, H, W)` over batch and positions, then scale and shift by each sample's class."""
        normalized = self.norm(x)
        # In the maps' own precision: under autocast a product with float32 would widen the maps.
        gain = (1 + self.gain(label)).to(normalized.dtype)[:, :, None, None]
        bias = self.bias(label).to(normalized.dtype)[:, :, None, None]
        return torch.addcmul(bias, normalized, gain)


def make_generator_norm(name: NormName, channels: int, num_classes: int | None) -> nn.Module:
    """Return a conditional batch norm where `num_classes` is given, else the normalization of that name.

    Raises:
        ValueError: for an unknown name, or a conditional norm that is not a batch norm.
    """
    if num_classes is None:
        return make_norm(name, channels)
    if name != "batch":
        raise ValueError(f"conditioning='cbn' is a conditional batch norm and goes with norm='batch', not '{name}'.")
    return ConditionalBatchNorm2d(channels, num_classes)


def apply_norm(norm: nn.Module, x: Tensor, label: Tensor | None) -> Tensor:
    """Apply a layer of `make_generator_norm`, with the label where it takes one."""
    out: Tensor = norm(x, label) if isinstance(norm, ConditionalBatchNorm2d) else norm(x)
    return out


class LogitHead(nn.Module):
    """One linear layer from features to the logit.

    Args:
        features: length F of the feature vector.
        bias: whether the layer has a bias.
    """

    def __init__(self, features: int, bias: bool = True) -> None:
        super().__init__()
        self.psi = nn.Linear(features, 1, bias=bias)

    def forward(self, h: Tensor, label: Tensor | None = None) -> Tensor:
        """Map features `(B, F)` to logits `(B,)`; the label is not read."""
        logits: Tensor = self.psi(h)
        return logits.squeeze(1)


class ProjectionHead(nn.Module):
    """The logit of the projection discriminator, psi(h) + <e_y, h> with a linear psi.

    Args:
        features: length F of the feature vector.
        num_classes: number of classes K.
        bias: whether psi has a bias.
    """

    def __init__(self, features: int, num_classes: int, bias: bool = True) -> None:
        super().__init__()
        self.psi = nn.Linear(features, 1, bias=bias)
        self.embedding = nn.Embedding(num_classes, features)

    def forward(self, h: Tensor, label: Tensor) -> Tensor:
        """Map features `(B, F)` and labels `(B,)` to logits `(B,)`."""
        logits: Tensor = self.psi(h)
        embedded: Tensor = self.embedding(label)
        return logits.squeeze(1) + (embedded * h).sum(1)


class AuxiliaryHead(nn.Module):
    """A logit and, from the same features, the logits of a classifier.

    Args:
        features: length F of the feature vector.
        num_classes: number of classes K.
        bias: whether the two linear layers have a bias.
    """

    def __init__(self, features: int, num_classes: int, bias: bool = True) -> None:
        super().__init__()
        self.psi = nn.Linear(features, 1, bias=bias)
        self.classifier = nn.Linear(features, num_classes, bias=bias)

    def forward(self, h: Tensor, label: Tensor | None = None) -> DiscriminatorOutput:
        """Map features `(B, F)` to logits `(B,)` and class logits `(B, K)`; the label is not read."""
        logits: Tensor = self.psi(h)
        return DiscriminatorOutput(logits.squeeze(1), self.classifier(h))


def make_head(
    conditioning: DiscriminatorConditioning, features: int, num_classes: int | None, bias: bool = True
) -> LogitHead | ProjectionHead | AuxiliaryHead:
    """Return the last layer of a discriminator.

    Args:
        conditioning: "projection" or "auxiliary"; every other has the plain logit.
        features: length F of the feature vector.
        num_classes: number of classes K, or None.
        bias: whether the linear layers have a bias.
    """
    if conditioning == "projection" and num_classes is not None:
        return ProjectionHead(features, num_classes, bias)
    if conditioning == "auxiliary" and num_classes is not None:
        return AuxiliaryHead(features, num_classes, bias)
    return LogitHead(features, bias)
