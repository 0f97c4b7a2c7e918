"""Any folder or zip archive of images as a data module.

Which folders are splits and classes is told in `lightning_gen.data.arrangement`, how a file becomes an
image of the wanted size in `lightning_gen.data.decoding`.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_gen.data.arrangement import Arrangement, arrange
from lightning_gen.data.base import Description, ImageDataModule
from lightning_gen.data.datasets import ImageDataset, Split, TensorImages
from lightning_gen.data.decoding import Decoder, Filter, Resize, UnreadableImage, is_gray, open_image
from lightning_gen.data.file_images import FileImages, decode_all, read
from lightning_gen.data.files import ImageFiles, open_files
from lightning_gen.errors import did_you_mean

logger = logging.getLogger(__name__)

# decoded images up to this many bytes are kept in memory by cache="auto"
_MEMORY = 1_000_000_000
# files whose headers tell whether the images are gray
_SAMPLED = 256
# names of skipped files that fit into a warning
_SHOWN = 10


class ImageFolderDataModule(ImageDataModule):
    """The images of a folder or a zip archive, brought to one size and to gray or RGB.

    Folders `train/`, `val/`, `test/` at the top are the splits; without them images are split by a hash
    of their relative names. Two or more folders below are the classes; without them images have no
    labels. The order is that of the names. An archive is read in place, nothing is unpacked.

    Where a split would be empty (few images), it is the training split, or all images, with a warning.

    Args:
        path: the folder or .zip file.
        size: height and width. None takes the images as they are, all of one size.
        resize: "crop" brings the short side to `size` and cuts out the center; "stretch" ignores the
            proportions; "pad" brings the long side to `size` and adds white.
        filter: of the resizing, antialiased.
        channels: 1 for gray, 3 for RGB; None is gray if all of up to 256 sampled files are gray, else RGB.
        labels: whether class folders give labels.
        val_fraction: share of the images that become the validation split where there is no such folder.
        test_fraction: the same of the test split.
        on_error: "raise" stops at an unreadable file; "skip" leaves it out and lists it in a warning, in
            the log and in `skipped`.
        cache: "memory" decodes once and keeps the images; "none" decodes them each time; "auto" keeps
            them if they all take less than 1 GB.
        name: what protocols call the data; by default the name of the folder or archive.
        batch_size: images a batch, over all ranks.
        num_workers: processes that load; of use with cache="none".
        flip: whether training images are mirrored at random.
        seed: of the order and the flips.
        n_predict: number of samples that `Trainer.predict` draws.
    """

    def __init__(
        self,
        path: str,
        size: int | None = None,
        resize: Resize = "crop",
        filter: Filter = "bicubic",
        channels: Literal[1, 3] | None = None,
        labels: bool = True,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        on_error: Literal["raise", "skip"] = "raise",
        cache: Literal["auto", "memory", "none"] = "auto",
        name: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        flip: bool = True,
        seed: int = 0,
        n_predict: int = 64,
    ) -> None:
        super().__init__(batch_size, num_workers, flip, seed, n_predict)
        _check_choices(
            resize=(resize, ("crop", "stretch", "pad")),
            filter=(filter, ("bicubic", "lanczos", "box")),
            channels=(channels, (1, 3, None)),
            on_error=(on_error, ("raise", "skip")),
            cache=(cache, ("auto", "memory", "none")),
        )
        if size is not None and size < 1:
            raise ValueError(f"size is 1 or more, or None, given was {size}.")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ValueError(
                "val_fraction and test_fraction are 0 or more and together less than 1, given were"
                f" {val_fraction} and {test_fraction}."
            )
        self.path = Path(path).expanduser()
        self.size, self.resize, self.filter, self.channels = size, resize, filter, channels
        self.labels, self.val_fraction, self.test_fraction = labels, val_fraction, test_fraction
        self.on_error, self.cache = on_error, cache
        self.name = name or (self.path.absolute().stem if self.path.suffix else self.path.absolute().name)
        # why each unreadable file was left out, by name, of the splits loaded so far
        self.skipped: dict[str, str] = {}

    # ---- what the files are

    @cached_property
    def files(self) -> ImageFiles:
        """The image files, listed when first needed."""
        return open_files(self.path)

    @cached_property
    def arrangement(self) -> Arrangement:
        """Splits and classes of the files; no split is empty."""
        given = arrange(self.files.names, self.labels, self.val_fraction, self.test_fraction)
        train = given.splits["train"] or list(self.files.names)
        splits: dict[Split, list[str]] = {"train": train}
        splits |= {"val": given.splits["val"] or train, "test": given.splits["test"] or train}
        empty = [split for split, names in given.splits.items() if not names]
        if empty:
            rank_zero_warn(
                f"{len(self.files.names)} image(s) in {self.path} leave nothing for {' and '.join(empty)}:"
                f" the {len(train)} image(s) of training are used there too, so no score of them says"
                " anything about new images."
            )
        return Arrangement(splits, given.class_names, given.label_of)

    @cached_property
    def decoder(self) -> Decoder:
        """Makes an image of the wanted size of a file."""
        channels = self.channels or (1 if self._all_gray() else 3)
        expected = self._first_size() if self.size is None else None
        strict = self.channels is None and channels == 1
        return Decoder(channels, self.size, self.resize, self.filter, expected, gray_only=strict)

    def _all_gray(self) -> bool:
        """Say whether all sampled files are gray; unreadable ones have no say."""
        names = self.files.names
        known = []
        for name in names[:: -(-len(names) // _SAMPLED)]:
            try:
                known.append(is_gray(read(self.files, name), name))
            except UnreadableImage:
                continue
        return bool(known) and all(known)

    def _first_size(self) -> tuple[int, int]:
        """Return (H, W) of the first image that can be read."""
        for name in self.files.names:
            try:
                image, _ = open_image(read(self.files, name), name)
            except UnreadableImage:
                if self.on_error == "raise":
                    raise
                continue
            return image.height, image.width
        raise UnreadableImage(f"None of the {len(self.files.names)} image files in {self.path} can be read.")

    def _describe(self) -> Description:
        decoder, names = self.decoder, self.arrangement.class_names
        height, width = decoder.expected or (self.size, self.size)
        if height is None or width is None:
            raise ValueError("The size of the images is not known.")
        return Description((decoder.channels, height, width), None if names is None else len(names), names)

    # ---- loading

    def _load(self, split: Split) -> ImageDataset:
        names, num_classes = self.arrangement.splits[split], self.num_classes
        channels, height, width = self.shape
        in_memory = self.cache == "memory" or (
            self.cache == "auto" and len(self.files.names) * channels * height * width < _MEMORY
        )
        lazy = self._file_images(names)
        if not in_memory and self.on_error == "raise":
            return lazy
        try:
            images, left_out = decode_all(lazy, self.shape, in_memory, self.on_error == "skip")
        except UnreadableImage as error:
            raise UnreadableImage(
                f"{str(error).rstrip('.')}. The file lies in {self.path}: remove it, or leave out what cannot be"
                " read with on_error='skip' (--data.on_error skip)."
            ) from error
        if left_out:
            self._report(split, left_out, len(names))
            lazy = self._file_images([name for name in names if name not in left_out])
        if images is None:
            return lazy
        return TensorImages(images, lazy.labels, num_classes)

    def _file_images(self, names: list[str]) -> FileImages:
        label_of, num_classes = self.arrangement.label_of, self.num_classes
        labels = None if num_classes is None else torch.tensor([label_of[name] for name in names])
        return FileImages(self.files, names, self.decoder, labels, num_classes)

    def _report(self, split: Split, left_out: dict[str, str], n_files: int) -> None:
        """Tell which files were left out, and why."""
        self.skipped |= left_out
        reasons = list(left_out.values())
        if len(reasons) == n_files:
            raise UnreadableImage(
                f"None of the {n_files} {split} images in {self.path} can be read; the first: {reasons[0]}"
            )
        for reason in reasons:
            logger.info("skipped: %s", reason)
        more = f"\n... and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        rank_zero_warn(
            f"Skipped {len(reasons)} of {n_files} {split} images in {self.path}; all are listed in the log at"
            " level INFO and in the attribute `skipped`:\n" + "\n".join(reasons[:_SHOWN]) + more
        )

    def _fingerprint(self, split: Split) -> str:
        """Hash relative names, file sizes and how the files become images, without decoding them.

        With on_error="skip" the unreadable files are found first, and left out.
        """
        if self.on_error == "skip":
            self.split(split)
        names = [name for name in self.arrangement.splits[split] if name not in self.skipped]
        digest = hashlib.sha256()
        for part in (list(self.shape), self.size, self.resize, self.filter):
            digest.update(json.dumps(part).encode() + b"\n")
        for name in names:
            digest.update(json.dumps([name, self.files.size(name)]).encode() + b"\n")
        return digest.hexdigest()


def _check_choices(**options: tuple[Any, Iterable[Any]]) -> None:
    """Raise a ValueError for an option whose value, the first of its pair, is not in the second."""
    for option, (given, allowed) in options.items():
        if given not in allowed:
            names = [str(name) for name in allowed]
            raise ValueError(
                f"{option} is one of {', '.join(names)}; given was {given!r}.{did_you_mean(str(given), names)}"
            )
