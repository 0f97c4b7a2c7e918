"""Autoencoders of images, variational, quantized and adversarial.

The modules are imported when they are first asked for, so that the pure parts come without Lightning.
"""

from typing import TYPE_CHECKING, Any

from lightning_gen.autoencoder.adaptive import adaptive_weight
from lightning_gen.autoencoder.bottlenecks import Bottled, Bottleneck, GaussianBottleneck
from lightning_gen.autoencoder.gaussian import DiagonalGaussian
from lightning_gen.autoencoder.net import AutoencoderNet
from lightning_gen.autoencoder.priors import Prior, StandardNormal
from lightning_gen.autoencoder.quantizers import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
    TwoLevelQuantizer,
    VectorQuantizer,
)

if TYPE_CHECKING:
    from lightning_gen.autoencoder.module import Autoencoder

__all__ = [
    "Autoencoder",
    "AutoencoderNet",
    "Bottled",
    "Bottleneck",
    "DiagonalGaussian",
    "FiniteScalarQuantizer",
    "GaussianBottleneck",
    "LookupFreeQuantizer",
    "Prior",
    "Quantizer",
    "ResidualQuantizer",
    "StandardNormal",
    "TwoLevelQuantizer",
    "VectorQuantizer",
    "adaptive_weight",
]


def __getattr__(name: str) -> Any:
    if name == "Autoencoder":
        from lightning_gen.autoencoder.module import Autoencoder

        return Autoencoder
    raise AttributeError(f"module 'lightning_gen.autoencoder' has no attribute '{name}'")
