"""Generative adversarial networks.

The module is imported when it is first asked for, so that the losses and penalties, which other families
use too, come without it and without Lightning.
"""

from typing import TYPE_CHECKING, Any

from lightning_gen.gan.ada import ADA
from lightning_gen.gan.augmentation import Augmentation
from lightning_gen.gan.diffaugment import DiffAugment
from lightning_gen.gan.losses import (
    AdversarialLoss,
    Hinge,
    LeastSquares,
    NonSaturating,
    RelativisticPairing,
    Saturating,
    Wasserstein,
)
from lightning_gen.gan.penalties import DRAGAN, R1, R2, WGANGP, Penalty

if TYPE_CHECKING:
    from lightning_gen.gan.module import GAN

__all__ = [
    "ADA",
    "DRAGAN",
    "GAN",
    "R1",
    "R2",
    "WGANGP",
    "AdversarialLoss",
    "Augmentation",
    "DiffAugment",
    "Hinge",
    "LeastSquares",
    "NonSaturating",
    "Penalty",
    "RelativisticPairing",
    "Saturating",
    "Wasserstein",
]


def __getattr__(name: str) -> Any:
    if name == "GAN":
        from lightning_gen.gan.module import GAN

        return GAN
    raise AttributeError(f"module 'lightning_gen.gan' has no attribute '{name}'")
