"""Feature extractors: frozen networks that turn uint8 images into the features a score is computed on.

A score belongs to its extractor: other weights, another resize or another precision is another number. So an
extractor carries the name scores are labelled with, the sha256 of its weights and the resize it applies, and it
takes the images as they are stored (uint8), never normalized by the caller.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

_Extractor = TypeVar("_Extractor", bound="FeatureExtractor")


class Extraction(NamedTuple):
    """What an extractor gives for a batch.

    Attributes:
        features: (B, d) float, what Frechet and kernel distances are computed on.
        logits: (B, K) float class scores, or None where the network has no classifier.
    """

    features: Tensor
    logits: Tensor | None


class FeatureExtractor(nn.Module):
    """A frozen network from uint8 images to features. Subclasses set the attributes and define `forward`.

    It stays in evaluation mode whatever `train()` is called with: batch statistics or dropout would make a score
    depend on the batch. Keep it out of a LightningModule's attributes, or its weights end in every checkpoint.

    Attributes:
        name: what scores are labelled with; changes with the weights unless the weights are standard.
        dim: number of features d.
        weights_sha256: hash of the weights file, or of the weights themselves when there is no file.
        resize: how images of another size are brought to the network's size, in words.
        dtype: precision of the forward pass, in words.
        image_channels: channels the network reads.
    """

    name: str
    dim: int
    weights_sha256: str
    resize: str
    dtype: str = "float32"
    image_channels: int

    def forward(self, images: Tensor) -> Extraction:
        """Extract features.

        Args:
            images: (B, C, H, W) uint8 in [0, 255].

        Returns:
            Features (B, d) and logits (B, K) or None.
        """
        raise NotImplementedError

    def check(self, images: Tensor) -> None:
        """Refuse what is not a batch of uint8 images.

        Raises:
            ValueError: wrong type or number of dimensions.
        """
        if images.dtype != torch.uint8:
            raise ValueError(
                f"{self.name} takes uint8 images in [0, 255], got {images.dtype}. "
                "Convert images in [-1, 1] with lightning_gen.images.to_uint8."
            )
        if images.ndim != 4:
            raise ValueError(f"{self.name} takes images (B, C, H, W), got shape {tuple(images.shape)}.")

    def freeze(self: _Extractor) -> _Extractor:
        """Evaluation mode, no gradients."""
        self.requires_grad_(False)
        return self.eval()

    def train(self: _Extractor, mode: bool = True) -> _Extractor:
        """Stay in evaluation mode, whatever is asked."""
        return super().train(False)


def file_sha256(path: str | Path) -> str:
    """Hash a file without holding it in memory.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def state_sha256(module: nn.Module) -> str:
    """Hash the weights and buffers of a module: names, types, shapes and values, in the order of names.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
