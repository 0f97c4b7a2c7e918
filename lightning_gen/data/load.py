"""Data by name, or by the path of a folder, an archive or shards."""

import inspect
import os
from pathlib import Path
from typing import Any

from lightning_gen.data.base import ImageDataModule
from lightning_gen.data.cifar10 import CIFAR10DataModule
from lightning_gen.data.cifar100 import CIFAR100DataModule
from lightning_gen.data.digits import DigitsDataModule
from lightning_gen.data.fashion_mnist import FashionMNISTDataModule
from lightning_gen.data.folder import ImageFolderDataModule
from lightning_gen.data.mnist import MNISTDataModule
from lightning_gen.data.shards.index import INDEX, PLAN
from lightning_gen.data.shards.module import ShardsDataModule
from lightning_gen.errors import choose, did_you_mean

DATA: dict[str, type[ImageDataModule]] = {
    "digits": DigitsDataModule,
    "mnist": MNISTDataModule,
    "fashion-mnist": FashionMNISTDataModule,
    "cifar10": CIFAR10DataModule,
    "cifar100": CIFAR100DataModule,
}


def load_data(name_or_folder: str, **kwargs: Any) -> ImageDataModule:
    """Make the data module of a data set by name, or of a folder of images, a zip archive of one, or shards.

    A name goes before a folder of the same name in the working folder: write `./mnist` for the folder.

    Args:
        name_or_folder: "digits", "mnist", "fashion-mnist", "cifar10", "cifar100" (upper case and "_" or
            "-" make no difference), or a path; an address for fsspec (`s3://...`) is one of shards.
        **kwargs: arguments of the data module.

    Raises:
        ValueError: where it is neither a name nor a path, or the data module has no such argument.
        MissingData: where it is a path, and nothing is there.
    """
    plain = _plain(name_or_folder)
    name = next((name for name in DATA if _plain(name) == plain), name_or_folder)
    looks_like_path = any(mark in name for mark in (os.sep, "/", ".", "~"))
    if name not in DATA and (looks_like_path or Path(name).exists()):
        of_path = ShardsDataModule if _holds_shards(name) else ImageFolderDataModule
        _check_arguments(of_path, kwargs)
        return of_path(name, **kwargs)
    kind = choose("data set, folder or archive", name, DATA)
    _check_arguments(kind, kwargs)
    return kind(**kwargs)


def _holds_shards(path: str) -> bool:
    folder = Path(path).expanduser()
    return "://" in path or (folder / INDEX).is_file() or (folder / PLAN).is_file()


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _check_arguments(kind: type[ImageDataModule], kwargs: dict[str, Any]) -> None:
    """Raise a ValueError for an argument that the data module does not have; names the nearest."""
    allowed = [name for name in inspect.signature(kind).parameters if name != "path"]
    for name in kwargs:
        if name not in allowed:
            raise ValueError(
                f"{kind.__name__} has no argument '{name}'; it has: {', '.join(allowed)}.{did_you_mean(name, allowed)}"
            )
