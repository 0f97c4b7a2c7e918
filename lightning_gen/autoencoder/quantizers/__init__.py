"""Quantizers: what turns an encoder's features into codes of a finite book."""

from lightning_gen.autoencoder.quantizers.base import Quantizer
from lightning_gen.autoencoder.quantizers.finite_scalar import FiniteScalarQuantizer
from lightning_gen.autoencoder.quantizers.hierarchy import TwoLevelQuantizer
from lightning_gen.autoencoder.quantizers.lookup_free import LookupFreeQuantizer
from lightning_gen.autoencoder.quantizers.residual import ResidualQuantizer
from lightning_gen.autoencoder.quantizers.vector import VectorQuantizer

__all__ = [
    "FiniteScalarQuantizer",
    "LookupFreeQuantizer",
    "Quantizer",
    "ResidualQuantizer",
    "TwoLevelQuantizer",
    "VectorQuantizer",
]
