"""Images as LightningDataModules: known data sets by name, any folder, zip archive or folder of shards by path."""

from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.cifar10 import CIFAR10DataModule
from lightning_gen.data.cifar100 import CIFAR100DataModule
from lightning_gen.data.datasets import Batch, ImageDataset, TensorImages
from lightning_gen.data.decoding import UnexpectedImage, UnreadableImage
from lightning_gen.data.digits import DigitsDataModule
from lightning_gen.data.fashion_mnist import FashionMNISTDataModule
from lightning_gen.data.folder import ImageFolderDataModule
from lightning_gen.data.latents import LatentsDataModule
from lightning_gen.data.load import DATA, load_data
from lightning_gen.data.mnist import MNISTDataModule
from lightning_gen.data.shards.index import DamagedShard
from lightning_gen.data.shards.module import ShardsDataModule

__all__ = [
    "DATA",
    "Batch",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DamagedShard",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageDataModule",
    "ImageDataset",
    "ImageFolderDataModule",
    "LatentsDataModule",
    "MNISTDataModule",
    "ShardsDataModule",
    "TensorImages",
    "UnexpectedImage",
    "UnreadableImage",
    "load_data",
]
