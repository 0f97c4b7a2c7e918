"""From files to bytes: every mode of the image library, against arithmetic done by hand."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.data.decoding import (
    Decoder,
    UnexpectedImage,
    UnreadableImage,
    is_gray,
    resize_batch,
)

RGB = Decoder(3, None)
GRAY = Decoder(1, None)


def encode(image, format="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, format, **how)
    return buffer.getvalue()


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def chw(pixels):
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def test_gray_and_rgb_bytes_are_exact():
    gray, rgb = noise(5, 7), noise(5, 7, 3)
    assert torch.equal(GRAY(encode(Image.fromarray(gray)), "x"), chw(gray))
    assert torch.equal(RGB(encode(Image.fromarray(rgb)), "x"), chw(rgb))
    # gray as RGB is the same three times, RGB as gray is the luma of ITU-R 601-2
    assert torch.equal(RGB(encode(Image.fromarray(gray)), "x"), chw(gray).expand(3, -1, -1))
    luma = rgb.astype(np.float64) @ [0.299, 0.587, 0.114]
    assert np.abs(GRAY(encode(Image.fromarray(rgb)), "x")[0].numpy() - luma).max() <= 1


def test_jpeg_equals_pillow():
    data = encode(Image.fromarray(noise(16, 24, 3)), "JPEG", quality=80)
    assert torch.equal(RGB(data, "x"), chw(np.array(Image.open(io.BytesIO(data)))))


@pytest.mark.parametrize("size", [4, 13, 40])
@pytest.mark.parametrize(("name", "resample"), [("bicubic", 3), ("lanczos", 1), ("box", 4)])
def test_resizing_equals_pillow(size, name, resample):
    image = Image.fromarray(noise(20, 33, 3))
    data = encode(image)
    stretched = Decoder(3, size, "stretch", name)(data, "x")
    assert torch.equal(stretched, chw(np.array(image.resize((size, size), resample))))
    wide = round(33 * size / 20)
    left = (wide - size) // 2
    cropped = image.resize((wide, size), resample).crop((left, 0, left + size, size))
    assert torch.equal(Decoder(3, size, "crop", name)(data, "x"), chw(np.array(cropped)))


def test_resizing_is_antialiased():
    # a fine checkerboard has no low frequency but its mean; without antialiasing it would alias to 0 or 255
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = Decoder(1, 8, "crop", "box")(encode(Image.fromarray(board)), "x")
    assert small.min() >= 127
    assert small.max() <= 128


def test_pad_keeps_everything_and_adds_white():
    black = Image.new("RGB", (8, 4))
    padded = Decoder(3, 8, "pad")(encode(black), "x")
    assert padded.shape == (3, 8, 8)
    assert (padded[:, 2:6] == 0).all()
    assert (padded[:, :2] == 255).all()
    assert (padded[:, 6:] == 255).all()


def test_extreme_proportions_keep_a_pixel():
    sliver = encode(Image.new("L", (1000, 1)))
    for how in ("crop", "pad", "stretch"):
        assert Decoder(1, 8, how)(sliver, "x").shape == (1, 8, 8)


def test_right_size_is_not_resampled():
    pixels = noise(8, 8, 3)
    for how in ("crop", "pad", "stretch"):
        assert torch.equal(Decoder(3, 8, how)(encode(Image.fromarray(pixels)), "x"), chw(pixels))


def test_alpha_is_composited_on_white():
    pixels = noise(9, 6, 4)
    color, alpha = pixels[..., :3].astype(np.float64), pixels[..., 3:] / 255
    expected = np.floor(color * alpha + 255 * (1 - alpha) + 0.5)
    made = RGB(encode(Image.fromarray(pixels)), "x").numpy().transpose(1, 2, 0)
    assert np.array_equal(made, expected)


def test_gray_alpha_stays_gray_and_is_composited_on_white():
    pixels = noise(9, 6, 2)
    data = encode(Image.merge("LA", [Image.fromarray(pixels[..., i].copy()) for i in (0, 1)]))
    value, alpha = pixels[..., 0].astype(np.float64), pixels[..., 1] / 255
    expected = np.floor(value * alpha + 255 * (1 - alpha) + 0.5)
    assert is_gray(data, "x")
    assert np.array_equal(GRAY(data, "x")[0].numpy(), expected)


def test_palette_and_its_transparent_color():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert RGB(encode(image), "x")[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]
    see_through = RGB(encode(image, transparency=0), "x")[:, 0].T.tolist()
    assert see_through == [[255, 255, 255], [200, 100, 50]]
    assert RGB(encode(image, "GIF"), "x")[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 50]]


def test_transparent_color_of_gray_and_rgb_files():
    gray = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert GRAY(encode(gray, transparency=7), "x").flatten().tolist() == [255, 9]
    rgb = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert RGB(encode(rgb, transparency=(1, 2, 3)), "x")[:, 0].T.tolist() == [[255] * 3, [4, 5, 6]]


def test_one_bit_images():
    image = Image.fromarray(np.array([[0, 255, 0]], np.uint8)).convert("1")
    assert GRAY(encode(image), "x").flatten().tolist() == [0, 255, 0]
    assert is_gray(encode(image), "x")


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_not_clipped(format):
    values = noise(40, 50, dtype=np.uint16)
    values[0, :4] = [0, 128, 129, 65535]
    if format == "PPM":
        # by hand: old Pillows read it and do not write it
        data = b"P5 50 40 65535\n" + values.astype(">u2").tobytes()
    else:
        data = encode(Image.fromarray(values), format)
    expected = np.floor(values / 257 + 0.5)
    assert is_gray(data, "x")
    assert np.array_equal(GRAY(data, "x")[0].numpy(), expected)
    assert expected[0, :4].tolist() == [0, 0, 1, 255]


def test_pixels_without_a_range_are_refused():
    with pytest.raises(UnreadableImage, match=r"x\.tif.*no fixed range"):
        GRAY(encode(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"), "x.tif")
    with pytest.raises(UnreadableImage, match="32 bits"):
        GRAY(encode(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"), "x.tif")


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (4, 4), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    assert RGB(encode(image, "TIFF"), "x")[:, 0, 0].tolist() == [255, 0, 0]
    red = RGB(encode(image, "JPEG", quality=100), "x")[:, 0, 0].tolist()
    assert np.abs(np.array(red) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(format):
    # what a viewer shows, by the definition of the tag: where row 0 and column 0 of the file go
    stored = np.kron(np.array([[0, 60, 120], [180, 220, 255]], np.uint8), np.ones((8, 8), np.uint8))
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].T,
        8: np.rot90(stored),
    }
    for orientation, expected in shown.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        how = {"quality": 100} if format == "JPEG" else {}
        made = GRAY(encode(Image.fromarray(stored), format, exif=exif, **how), "x")[0].numpy()
        assert made.shape == expected.shape
        assert np.abs(made.astype(int) - expected).max() <= 2, orientation


def test_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert RGB(data, "x")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_unreadable_files_are_named(format):
    whole = encode(Image.fromarray(noise(64, 64, 3)), format)
    for data in (b"", b"not an image", whole[: len(whole) // 2], whole[:20]):
        with pytest.raises(UnreadableImage, match=r"cat/7\.png cannot be read"):
            RGB(data, "cat/7.png")


def test_damaged_exif_does_not_damage_the_image():
    pixels = noise(8, 8, 3)
    data = encode(Image.fromarray(pixels), exif=b"Exif\x00\x00MM\x00*broken")
    assert torch.equal(RGB(data, "x"), chw(pixels))


def test_unlike_images_are_refused():
    with pytest.raises(UnexpectedImage, match="size="):
        Decoder(3, None, expected=(4, 4))(encode(Image.new("RGB", (4, 5))), "x")
    with pytest.raises(UnexpectedImage, match="channels=3"):
        Decoder(1, None, gray_only=True)(encode(Image.new("RGB", (4, 4))), "x")


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_batch_equals_pillow(channels):
    images = torch.from_numpy(noise(3, channels, 8, 8))
    made = resize_batch(images, 12)
    for image, small in zip(made, images, strict=True):
        pixels = small[0].numpy() if channels == 1 else small.permute(1, 2, 0).numpy()
        expected = np.array(Image.fromarray(pixels).resize((12, 12), Image.Resampling.BICUBIC))
        assert torch.equal(image, chw(expected))
    assert resize_batch(images, 8) is images
