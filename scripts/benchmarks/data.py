"""A batch of training images in [-1, 1]: our data modules against what people write with torchvision."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.timing import Options, Row, Seconds, Stopwatch, Unavailable, alternate
from lightning_gen.data.base import Description, ImageDataModule
from lightning_gen.data.datasets import ImageDataset, Split, TensorImages
from lightning_gen.data.digits import DigitsDataModule
from lightning_gen.images import from_uint8

BATCH = 128


class MemoryData(ImageDataModule):
    """Random bytes with random labels of ten classes, in memory.

    Args:
        shape: `(C, H, W)`.
        n_images: how many.
        batch_size: images a batch.
    """

    name = "memory"

    def __init__(self, shape: tuple[int, int, int], n_images: int, batch_size: int) -> None:
        super().__init__(batch_size)
        generator = torch.Generator().manual_seed(0)
        self.size = shape
        self.images = torch.randint(0, 256, (n_images, *shape), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, 10, (n_images,), generator=generator)

    def _describe(self) -> Description:
        return Description(self.size, 10, [str(label) for label in range(10)])

    def _load(self, split: Split) -> ImageDataset:
        return TensorImages(self.images, self.labels, 10)


class TorchvisionStyle(Dataset[tuple[Tensor, int]]):
    """An image at a time: from an array to PIL to a tensor to [-1, 1], as torchvision's own data sets do.

    Args:
        images: bytes, `(N, C, H, W)`.
        labels: `(N,)`.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision import transforms

        self.arrays = images.permute(0, 2, 3, 1).squeeze(-1).numpy()
        self.labels = labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 0.5)])

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def data(options: Options) -> list[Row]:
    """Measure a batch of the digits, and one in CIFAR-10's format."""
    try:
        import torchvision  # noqa: F401
    except ImportError as error:
        raise Unavailable("needs torchvision: pip install torchvision") from error
    memory = MemoryData((3, 32, 32), options.size(10_000, 2 * BATCH), BATCH)
    return [
        _row("data/digits 8x8", DigitsDataModule(batch_size=BATCH), options),
        _row("data/memory 3x32x32", memory, options),
    ]


def _row(name: str, module: ImageDataModule, options: Options) -> Row:
    split = module.split("train")
    images, labels = split.images, split.labels  # type: ignore[attr-defined]
    settings: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "drop_last": True}
    by_torchvision = DataLoader(TorchvisionStyle(images, labels), **settings)
    by_tensors = DataLoader(TensorDataset(images, labels), **settings)
    lanes = {
        "torchvision style": _lane(lambda: (image for image, _ in by_torchvision), options, slow=True),
        "TensorDataset": _lane(lambda: (from_uint8(image) for image, _ in by_tensors), options),
        "ours": _lane(lambda: (from_uint8(batch["image"]) for batch in module.train_dataloader()), options),
    }
    row = Row(name, f"batch of {BATCH}", alternate(lanes, options.repeats), options.clock)
    row.compare("ours", "torchvision style", "speedup")
    row.compare("ours", "TensorDataset", "speedup")
    return row


def _lane(batches: Callable[[], Iterator[Tensor]], options: Options, slow: bool = False) -> Callable[[], Seconds]:
    """Read whole epochs, their start included, until so many batches have come."""
    wanted = options.size(50 if slow else 500, 2)

    def measure() -> Seconds:
        next(batches())
        watch, seen = Stopwatch(), 0
        watch.start()
        while seen < wanted:
            seen += sum(1 for _ in batches())
        return watch.stop(seen)

    return measure
