"""Latents of a codec, written once for a data set: each training image then need not be encoded in every epoch.

Files are written one after the other, each whole or not at all, the index last: a command that was cut off goes on
with the file it was at. Latents are the codec's means in the order of the images, not whitened: the statistics of the
whitening, over all training images, are in the index.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models
    https://arxiv.org/abs/2112.10752
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_gen.codec import Codec
from lightning_gen.data.base import SPLITS, ImageDataModule
from lightning_gen.data.datasets import ImageDataset, Split
from lightning_gen.data.latent_index import LATENTS, PLAN, LatentFile, LatentIndex
from lightning_gen.errors import RunError
from lightning_gen.files import written_whole
from lightning_gen.images import from_uint8

Progress = Callable[[str, int, int], None]
DType = Literal["float32", "float16"]
_MIRRORED = "mirrored"


class LatentWriter:
    """Encodes the images of a data module and writes their latents.

    Args:
        codec: on the device that it shall compute on.
        data: the images, without flips.
        out: a new folder, or one that the same command was writing to.
        shard_mb: about how large a file gets, in units of 1e6 bytes.
        batch_size: images that are encoded at a time.
        dtype: of the files; float16 halves them, and rounds to three digits.
        flip: whether the training images are encoded mirrored too, for training that flips them at random.

    Raises:
        ValueError: where the images do not fit the codec, or a number is out of range.
    """

    def __init__(
        self,
        codec: Codec,
        data: ImageDataModule,
        out: str | Path,
        shard_mb: float = 64.0,
        batch_size: int = 64,
        dtype: DType = "float32",
        flip: bool = False,
    ) -> None:
        if shard_mb <= 0 or batch_size < 1:
            raise ValueError(f"shard_mb is above 0 and batch_size 1 or more; given were {shard_mb} and {batch_size}.")
        if tuple(data.shape) != tuple(codec.image_shape):
            raise ValueError(
                f"The codec takes images of shape {tuple(codec.image_shape)}, the data has {tuple(data.shape)}: give"
                " the data that size (--data_size), or a codec that was trained on it."
            )
        self.codec, self.data, self.out = codec, data, Path(out).expanduser()
        self.batch_size, self.dtype, self.flip = batch_size, np.dtype(dtype), flip
        self.device = codec.mean.device
        bytes_each = int(np.prod(codec.latent_shape)) * self.dtype.itemsize
        self.per_file = max(1, int(shard_mb * 1e6 / bytes_each))

    def write(self, progress: Progress | None = None) -> LatentIndex:
        """Write what is missing; return the index.

        Args:
            progress: told the name of each file that is there, how many are, and of how many.

        Raises:
            RunError: where the folder holds something else.
        """
        made = {"data": self.data.name, "dtype": self.dtype.name, "images_per_file": self.per_file}
        made |= {"flip": True} if self.flip else {}
        fingerprints = {split: self.data.fingerprint(split) for split in SPLITS.values()}
        codec = self.codec.fingerprint()
        self._begin({**made, "codec": codec, "images": fingerprints})
        splits = {split: self.data.split(split) for split in SPLITS.values()}
        passes: list[tuple[str, Split, bool]] = [(split, split, False) for split in splits]
        passes += [(_MIRRORED, "train", True)] * self.flip
        total = sum(-(-len(splits[split]) // self.per_file) for _, split, _ in passes)
        files: dict[str, list[LatentFile]] = {name: [] for name, _, _ in passes}
        done = 0
        for name, split, mirrored in passes:
            for rows in torch.split(torch.arange(len(splits[split])), self.per_file):
                files[name].append(self._file(f"{name}-{len(files[name]):05}.npy", splits[split], rows, mirrored))
                done += 1
                if progress is not None:
                    progress(files[name][-1].file, done, total)
        mean, std = self._statistics(files["train"])
        of_splits = {split: files[split] for split in splits}
        mirrored_files = files.get(_MIRRORED, [])
        index = LatentIndex(codec, self.codec.latent_shape, of_splits, fingerprints, mean, std, made, mirrored_files)
        with written_whole(self.out / LATENTS) as partial:
            partial.write_text(index.to_json(), encoding="utf-8")
        return index

    def _begin(self, plan: dict[str, Any]) -> None:
        """Note what is to be written, or go on with it."""
        content = json.dumps(plan, indent=1) + "\n"
        path = self.out / PLAN
        if path.is_file():
            if path.read_text(encoding="utf-8") == content:
                return
            raise RunError(
                f"{self.out} holds latents of another codec, of other images, or with other options: give another"
                " folder for these, or repeat the command that wrote those."
            )
        if self.out.is_dir() and any(not entry.name.startswith(".") for entry in self.out.iterdir()):
            raise RunError(f"{self.out} is not empty: give a new folder for the latents.")
        with written_whole(path) as partial:
            partial.write_text(content, encoding="utf-8")

    def _file(self, name: str, images: ImageDataset, rows: Tensor, mirrored: bool) -> LatentFile:
        path = self.out / name
        if not path.is_file():
            latents = np.concatenate(list(self._encoded(images, rows, mirrored)))
            # through a file handle, for numpy adds an ending to a name
            with written_whole(path) as partial, partial.open("wb") as file:
                np.save(file, latents, allow_pickle=False)
        content = path.read_bytes()
        return LatentFile(name, len(rows), len(content), hashlib.sha256(content).hexdigest())

    def _encoded(self, images: ImageDataset, rows: Tensor, mirrored: bool) -> Iterator[np.ndarray]:
        for part in torch.split(rows, self.batch_size):
            batch = images.batch(part)
            if mirrored:
                images.mirror(batch, part, torch.ones(len(part), dtype=torch.bool))
            pixels = from_uint8(batch["image"]).to(device=self.device, dtype=self.codec.mean.dtype)
            latents = self.codec.raw(pixels).float().cpu().numpy().astype(self.dtype)
            if not np.isfinite(latents).all():
                raise RunError(
                    "The codec's latents are NaN or infinite: it has diverged, or --dtype float16 cannot hold them"
                    " (above 65,504)."
                )
            yield latents

    def _statistics(self, files: list[LatentFile]) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel, by the codec's own rule."""
        opened = (np.load(self.out / file.file, mmap_mode="r", allow_pickle=False) for file in files)
        self.codec.learn(torch.from_numpy(np.array(part)) for part in opened)
        return self.codec.mean.flatten().tolist(), self.codec.std.flatten().tolist()
