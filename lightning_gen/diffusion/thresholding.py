r"""Keeping an estimated image in the range of images.

Clipping puts :math:`\hat x_0` into [-1, 1]. Dynamic thresholding takes s, a high percentile of
:math:`|\hat x_0|` of each sample and at least 1, clips to [-s, s] and divides by s: guided samples then do not
saturate. Both are for images as data, not for latents.

References:
    Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding (section 2.3)
    https://arxiv.org/abs/2205.11487
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Threshold(ABC):
    """Base class."""

    @abstractmethod
    def __call__(self, x0: Tensor) -> Tensor:
        """Return images `(B, ...)` in [-1, 1]."""


class Clip(Threshold):
    """Clip to [-1, 1]."""

    def __call__(self, x0: Tensor) -> Tensor:
        """Return the clipped images."""
        return x0.clamp(-1, 1)


class DynamicThreshold(Threshold):
    """Clip to a percentile of each sample and scale to [-1, 1].

    Args:
        percentile: share of a sample's values that lie within, above 0 and at most 1.
    """

    def __init__(self, percentile: float = 0.995) -> None:
        if not 0 < percentile <= 1:
            raise ValueError(f"percentile is above 0 and at most 1; given was {percentile}.")
        self.percentile = percentile

    def __call__(self, x0: Tensor) -> Tensor:
        """Return the scaled images."""
        # torch.quantile refuses more than 16 million numbers in releases that are still in use
        ordered = x0.abs().flatten(1).sort(dim=1).values
        place = self.percentile * (ordered.shape[1] - 1)
        low, high = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
        bound = torch.lerp(low, high, place - math.floor(place)).clamp_min(1).view(-1, *[1] * (x0.ndim - 1))
        return torch.maximum(torch.minimum(x0, bound), -bound) / bound
