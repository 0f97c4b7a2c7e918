"""Generative models on PyTorch Lightning.

The public names are resolved when they are first used: importing the package loads neither torch nor
Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# every public name and the module it is taken from
_PUBLIC = {
    "Autoencoder": "autoencoder.module",
    "CIFAR100DataModule": "data",
    "CIFAR10DataModule": "data",
    "CheckpointError": "checkpoints",
    "Diffusion": "diffusion.module",
    "DigitsDataModule": "data",
    "EMA": "ema",
    "Evaluator": "metrics",
    "FashionMNISTDataModule": "data",
    "Fidelity": "callbacks",
    "GAN": "gan.module",
    "GenerativeModule": "module",
    "ImageFolderDataModule": "data",
    "LatentsDataModule": "data",
    "MNISTDataModule": "data",
    "MissingData": "errors",
    "MissingExtra": "errors",
    "NormalizingFlow": "flow.module",
    "RunCSVLogger": "loggers",
    "SampleGrid": "callbacks",
    "ShardsDataModule": "data",
    "TrainedCodec": "codec",
    "VAE": "autoencoder.vae",
    "load_checkpoint": "checkpoints",
    "load_data": "data",
    "load_module": "checkpoints",
}

if TYPE_CHECKING:
    from lightning_gen.autoencoder.module import Autoencoder
    from lightning_gen.autoencoder.vae import VAE
    from lightning_gen.callbacks import Fidelity, SampleGrid
    from lightning_gen.checkpoints import CheckpointError, load_checkpoint, load_module
    from lightning_gen.codec import TrainedCodec
    from lightning_gen.data import (
        CIFAR10DataModule,
        CIFAR100DataModule,
        DigitsDataModule,
        FashionMNISTDataModule,
        ImageFolderDataModule,
        LatentsDataModule,
        MNISTDataModule,
        ShardsDataModule,
        load_data,
    )
    from lightning_gen.diffusion.module import Diffusion
    from lightning_gen.ema import EMA
    from lightning_gen.errors import MissingData, MissingExtra
    from lightning_gen.flow.module import NormalizingFlow
    from lightning_gen.gan.module import GAN
    from lightning_gen.loggers import RunCSVLogger
    from lightning_gen.metrics import Evaluator
    from lightning_gen.module import GenerativeModule

__all__ = [
    "EMA",
    "GAN",
    "VAE",
    "Autoencoder",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "CheckpointError",
    "Diffusion",
    "DigitsDataModule",
    "Evaluator",
    "FashionMNISTDataModule",
    "Fidelity",
    "GenerativeModule",
    "ImageFolderDataModule",
    "LatentsDataModule",
    "MNISTDataModule",
    "MissingData",
    "MissingExtra",
    "NormalizingFlow",
    "RunCSVLogger",
    "SampleGrid",
    "ShardsDataModule",
    "TrainedCodec",
    "__version__",
    "load_checkpoint",
    "load_data",
    "load_module",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'lightning_gen' has no attribute '{name}'")
    value = getattr(import_module(f"lightning_gen.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
