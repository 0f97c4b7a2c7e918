"""What is stored of an image: its file as it is, or the image at its new size, encoded anew."""

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from lightning_gen.data.decoding import UnreadableImage
from lightning_gen.data.file_images import read
from lightning_gen.data.folder import ImageFolderDataModule

_BLOCK, _THREADS = 256, 8


class Stored(NamedTuple):
    """A file in a shard: the ending of its name says what it is."""

    kind: str
    content: bytes


class Encoder:
    """Makes what is stored of the images of a folder or archive.

    A file whose image needs no resizing is stored as it is; what is decoded of it is the same before and after.

    Args:
        source: the images; its options say how they become images of one size.
        jpeg_quality: 1 to 100: images that are resized are stored as JPEG; None: as PNG, which loses nothing.

    Raises:
        ValueError: where the quality is out of range.
    """

    def __init__(self, source: ImageFolderDataModule, jpeg_quality: int | None = None) -> None:
        if jpeg_quality is not None and not 1 <= jpeg_quality <= 100:
            raise ValueError(f"jpeg_quality is 1 to 100, or None for PNG; given was {jpeg_quality}.")
        self.source, self.jpeg_quality = source, jpeg_quality

    def __call__(self, name: str) -> Stored:
        """Return what is stored of a file.

        Raises:
            UnreadableImage: where the file cannot be read.
            UnexpectedImage: where the image is unlike the others.
        """
        decoder = self.source.decoder
        content = read(self.source.files, name)
        pixels = decoder(content, name)
        with Image.open(io.BytesIO(content)) as opened:
            as_it_is = decoder.size is None or opened.size == (decoder.size, decoder.size)
        if as_it_is:
            return Stored(Path(name).suffix.lower().lstrip("."), content)
        array = pixels[0] if pixels.shape[0] == 1 else pixels.permute(1, 2, 0)
        image, file = Image.fromarray(array.contiguous().numpy()), io.BytesIO()
        if self.jpeg_quality is None:
            image.save(file, "png")
            return Stored("png", file.getvalue())
        image.save(file, "jpeg", quality=self.jpeg_quality, subsampling=0)
        return Stored("jpg", file.getvalue())

    def each(self, names: Sequence[str]) -> Iterator[tuple[str, Stored | UnreadableImage]]:
        """Encode files on several threads, in their order; where the source skips unreadable ones, give the reason.

        Raises:
            UnreadableImage: at a file that cannot be read, unless the source skips these.
        """

        def attempt(name: str) -> Stored | UnreadableImage:
            try:
                return self(name)
            except UnreadableImage as error:
                if self.source.on_error == "skip":
                    return error
                raise UnreadableImage(
                    f"{str(error).rstrip('.')}. The file lies in {self.source.path}: remove it, or leave out what"
                    " cannot be read (--on_error skip)."
                ) from error

        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(names), _BLOCK):
                block = names[start : start + _BLOCK]
                yield from zip(block, pool.map(attempt, block), strict=True)
