"""Pictures that a person gives to sampling: tensors, or files brought to the model's shape."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from lightning_gen.images import from_uint8


def picture_of(given: Tensor | str | Path, shape: Sequence[int]) -> Tensor:
    """Return a picture `(1 or n, C, H, W)` in [-1, 1].

    Args:
        given: the picture, or the path of an image file, which is cropped to a square and resized.
        shape: `(C, H, W)` of a file's picture.

    Raises:
        UnreadableImage: where a file is no image.
    """
    return given if isinstance(given, Tensor) else from_uint8(_read(Path(given), shape))[None]


def mask_of(given: Tensor | str | Path, shape: Sequence[int]) -> Tensor:
    """Return a mask `(1 or n, 1, H, W)` of 0 and 1; in a file, light pixels are 1."""
    return given if isinstance(given, Tensor) else (_read(Path(given), (1, *shape[1:])) > 127)[None].float()


def _read(path: Path, shape: Sequence[int]) -> Tensor:
    # the package of data modules loads Lightning, which this one does without
    from lightning_gen.data.decoding import Decoder

    return Decoder(channels=shape[0], size=shape[1])(path.read_bytes(), str(path))
