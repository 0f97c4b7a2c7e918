r"""From the bytes of an image file to bytes `(C, H, W)`: upright, 8 bits, gray or RGB, one size.

- 16-bit gray becomes 8 bits by :math:`\mathrm{round}(255\,v / 65535)`; of 16-bit color, the image library
  keeps the upper byte.
- Transparency is composited on white: :math:`\mathrm{round}(\alpha v + (1 - \alpha)\,255)`.
- Palettes are looked up, CMYK and other color spaces become RGB; color profiles are not applied.
- The orientation in the EXIF data is applied; of an animation the first frame is taken.
- Color becomes gray, where asked for, by the luma weights of ITU-R 601-2.
- Resizing is antialiased; an image that has the size already keeps its bytes.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Resize = Literal["crop", "stretch", "pad"]
Filter = Literal["bicubic", "lanczos", "box"]

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = 255


class UnreadableImage(ValueError):
    """A file is no image, is cut short, or has values without a known range."""


class UnexpectedImage(ValueError):
    """An image is sound but unlike the others, in size or color, where nothing says how to make it so."""


@dataclass(frozen=True)
class Decoder:
    """How files become images of one shape.

    Attributes:
        channels: 1 for gray, 3 for RGB.
        size: height and width after resizing; None takes images as they are.
        resize: "crop" brings the short side to `size` and cuts out the center; "stretch" ignores the
            proportions; "pad" brings the long side to `size` and adds white at both ends of the other.
        filter: of the resizing, antialiased.
        expected: (H, W) that every image must have where `size` is None.
        gray_only: whether color is an error where `channels` is 1.
    """

    channels: int
    size: int | None
    resize: Resize = "crop"
    filter: Filter = "bicubic"
    expected: tuple[int, int] | None = None
    gray_only: bool = False

    def __call__(self, data: bytes, name: str) -> Tensor:
        """Decode one file.

        Args:
            data: its content.
            name: what errors call it.

        Returns:
            uint8 `(C, H, W)`.

        Raises:
            UnreadableImage: where the file cannot be read.
            UnexpectedImage: where it is unlike the others.
        """
        image, gray = open_image(data, name)
        if self.gray_only and not gray:
            raise UnexpectedImage(
                f"{name} is in color, while all files looked at first are gray: give channels=3 to have all"
                " images in RGB, or channels=1 to have all in gray."
            )
        image = image.convert("L" if self.channels == 1 else "RGB")
        if self.size is not None:
            image = resize_image(image, self.size, self.resize, self.filter)
        elif self.expected is not None and image.size != self.expected[::-1]:
            raise UnexpectedImage(
                f"{name} has {image.height} x {image.width} pixels, the first image"
                f" {self.expected[0]} x {self.expected[1]} (height x width): give size=... (--data.size N) to have"
                " all images resized."
            )
        return to_tensor(image)


def open_image(data: bytes, name: str) -> tuple[Image.Image, bool]:
    """Decode a file to 8 bits without transparency, upright; also say whether it is gray.

    Raises:
        UnreadableImage: where that fails; names the file.
    """
    if not data:
        raise UnreadableImage(f"{name} cannot be read: the file is empty.")
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            gray = opened.mode in _GRAY_MODES
            return _eight_bit(_upright(opened)), gray
    except MemoryError:
        raise
    except Exception as error:  # the formats of the image library raise whatever comes
        raise UnreadableImage(f"{name} cannot be read: {type(error).__name__}: {error}") from error


def is_gray(data: bytes, name: str) -> bool:
    """Say from the header alone whether an image is gray.

    Raises:
        UnreadableImage: where the header cannot be read; names the file.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return opened.mode in _GRAY_MODES
    except Exception as error:
        raise UnreadableImage(f"{name} cannot be read: {type(error).__name__}: {error}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # damaged EXIF data do not damage the pixels
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring any mode to "L" or "RGB"."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save the images with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("pixels of 32 bits have no fixed range; save the images with 8 or 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _on_white(image.convert("LA" if image.mode in _GRAY_MODES else "RGBA"))
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """Composite "LA" or "RGBA" on white, rounding to the nearest byte."""
    pixels = np.asarray(image).astype(np.int32)
    color, alpha = pixels[..., :-1], pixels[..., -1:]
    blended = ((color * alpha + _WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)
    return Image.fromarray(blended[..., 0] if blended.shape[-1] == 1 else blended)


def resize_image(image: Image.Image, size: int, resize: Resize, filter: Filter) -> Image.Image:
    """Bring an image to `size` x `size`, antialiased; see `Decoder` for the ways."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    resample = _FILTERS[filter]
    if resize == "stretch":
        return image.resize((size, size), resample)
    side = min(width, height) if resize == "crop" else max(width, height)
    scaled = max(1, round(width * size / side)), max(1, round(height * size / side))
    image = image.resize(scaled, resample) if scaled != image.size else image
    # half the surplus (crop) or lack (pad) goes to the left and to the top, rounded down
    left, top = (image.width - size) // 2, (image.height - size) // 2
    if resize == "crop":
        return image.crop((left, top, left + size, top + size))
    canvas = Image.new(image.mode, (size, size), "white")
    canvas.paste(image, (-left, -top))
    return canvas


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an image of mode "L" or "RGB" into uint8 `(C, H, W)`."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Bring square images `(N, C, H, H)` of bytes to `size` by an antialiased bicubic filter."""
    if images.shape[-1] == size:
        return images
    gray = images.shape[1] == 1
    pixels = (images[:, 0] if gray else images.permute(0, 2, 3, 1)).contiguous().numpy()
    resized = np.stack(
        [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) for image in pixels]
    )
    made = torch.from_numpy(resized)
    return made[:, None] if gray else made.permute(0, 3, 1, 2).contiguous()
