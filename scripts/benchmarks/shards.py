"""A batch of training images decoded from their files: in a plain folder, and in shards."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.timing import Options, Row, Seconds, Stopwatch, Unavailable, alternate
from lightning_gen.data import ImageFolderDataModule, ShardsDataModule
from lightning_gen.data.base import ImageDataModule

BATCH = 128


def shards(options: Options) -> list[Row]:
    """Measure small and middling photographs, warm and cold."""
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise Unavailable("needs webdataset: pip install webdataset") from error
    cases = [(32, options.size(20_000, 200)), (128, options.size(6_000, 200))]
    with tempfile.TemporaryDirectory(prefix="lightning_gen_") as root:
        return [_row(f"shards/3x{size}x{size}", Path(root) / str(size), size, n, options) for size, n in cases]


def _row(name: str, root: Path, size: int, n_images: int, options: Options) -> Row:
    from lightning_gen.data.shards.writing import ShardWriter

    _photographs(root / "folder", size, n_images)
    # twenty shards, so that the window is not all of them
    mean = sum(file.stat().st_size + 1500 for file in (root / "folder").iterdir()) / 20
    ShardWriter(ImageFolderDataModule(str(root / "folder")), str(root / "shards"), mean / 1e6).write()
    if not options.tiny:
        os.sync()  # what is not on the disk yet cannot be dropped from memory

    def folder(workers: int) -> ImageDataModule:
        return ImageFolderDataModule(
            str(root / "folder"), cache="none", batch_size=BATCH, num_workers=workers, flip=False
        )

    def sharded(workers: int) -> ImageDataModule:
        return ShardsDataModule(str(root / "shards"), batch_size=BATCH, num_workers=workers, flip=False)

    lanes = {}
    for workers in (0, 2):
        words = f", {workers} workers" if workers else ""
        lanes[f"folder{words}"] = _lane(folder(workers), options)
        lanes[f"shards{words}"] = _lane(sharded(workers), options)
    lanes["folder, cold"] = _lane(folder(0), options, root / "folder")
    lanes["shards, cold"] = _lane(sharded(0), options, root / "shards")
    row = Row(name, f"batch of {BATCH}", alternate(lanes, options.repeats), options.clock)
    for words in ("", ", 2 workers", ", cold"):
        row.compare(f"shards{words}", f"folder{words}", "speedup")
    for lane, times in row.lanes.items():
        seconds = sorted(taken.wall for taken in times)[len(times) // 2]
        row.facts[f"images a second, {lane}"] = round(BATCH / seconds)
    row.facts["bytes of an image file"] = round(
        sum(file.stat().st_size for file in (root / "folder").iterdir()) / n_images
    )
    return row


def _photographs(folder: Path, size: int, n_images: int) -> None:
    """Write JPEG files that are as smooth as photographs: coarse noise, enlarged, with a little fine noise."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    for number in range(n_images):
        coarse = torch.rand(1, 3, 6, 6, generator=generator)
        image = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")[0]
        image = image + 0.03 * torch.randn(3, size, size, generator=generator)
        pixels = (image.clamp(0, 1) * 255).byte().permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(pixels).save(folder / f"{number:06}.jpg", quality=90)


def _lane(module: ImageDataModule, options: Options, cold: Path | None = None) -> Callable[[], Seconds]:
    """Read so many batches, of one epoch or several; a cold one begins with no file in memory."""
    wanted = options.size(100, 2)
    epoch = 0

    def batches() -> Iterator[object]:
        nonlocal epoch
        loader = module.train_dataloader()
        while True:
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            epoch += 1
            yield from loader

    def measure() -> Seconds:
        module.split("train")
        watch, found = Stopwatch(), batches()
        if cold is None:
            next(found)  # worker processes are there by then
        else:
            forget(cold)
        watch.start()
        for _ in range(wanted):
            next(found)
        return watch.stop(wanted)

    return measure


def forget(folder: Path) -> None:
    """Ask the system to drop the files of a folder from its memory."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
