"""Autoencoders."""

from lightning_gen.autoencoder.adaptive import adaptive_weight
from lightning_gen.autoencoder.quantizers import (
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
    Quantizer,
    ResidualQuantizer,
    TwoLevelQuantizer,
    VectorQuantizer,
)

__all__ = [
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "Quantizer",
    "ResidualQuantizer",
    "TwoLevelQuantizer",
    "VectorQuantizer",
    "adaptive_weight",
]
