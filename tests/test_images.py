"""Bytes and floats are inverse; grids and files hold what was given."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.files import written_whole
from lightning_gen.images import enlarge, from_uint8, image_grid, to_uint8, write_png


def test_all_bytes_survive_the_round_trip():
    every = torch.arange(256, dtype=torch.uint8)
    floats = from_uint8(every)
    assert floats[0] == -1
    assert floats[-1] == 1
    assert torch.equal(to_uint8(floats), every)
    assert torch.equal(to_uint8(floats.double()), every)


def test_rounding_neither_truncates_nor_wraps():
    """x * 255 cast to bytes turns 1.1 into 24 and -0.1 into 231."""
    given = torch.tensor([-2.0, -1.1, -1.0, -0.999, 0.0, 0.999, 1.0, 1.1, 30.0])
    assert to_uint8(given).tolist() == [0, 0, 0, 0, 128, 255, 255, 255, 255]
    uniform = torch.linspace(-1, 1, 100_001, dtype=torch.float64)
    error = to_uint8(uniform).double() - (uniform + 1) * 127.5
    assert error.abs().max() <= 0.5 + 1e-5
    assert abs(error.mean()) < 1e-3  # truncation has -0.5


def test_wrong_dtypes_and_nan_are_refused():
    with pytest.raises(ValueError, match="uint8"):
        from_uint8(torch.zeros(2))
    with pytest.raises(ValueError, match="floating"):
        to_uint8(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="diverged"):
        to_uint8(torch.tensor([0.0, float("nan")]))


def test_a_grid_holds_each_image_at_its_place():
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    grid = image_grid(images, columns=3, padding=1)
    assert grid.shape == (3, 2 * 5 + 1, 3 * 7 + 1)
    assert torch.equal(grid[:, 6:10, 8:14], images[4])
    assert grid[:, :, 0].sum() == grid[:, 0].sum() == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_a_written_png_is_read_back(tmp_path, channels):
    image = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    write_png(tmp_path / "folder" / "image.png", image)
    read = np.asarray(Image.open(tmp_path / "folder" / "image.png"))
    assert np.array_equal(read.reshape(5, 7, channels), image.permute(1, 2, 0).numpy())


def test_enlarging_repeats_pixels():
    image = torch.randint(0, 256, (1, 3, 5), dtype=torch.uint8)
    large = enlarge(image, at_least=12)
    assert large.shape == (1, 9, 15)
    assert torch.equal(large[:, ::3, ::3], image)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), written_whole(target) as partial:
        partial.write_text(str(1 / 0))
    assert target.read_text() == "old"
    with written_whole(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]
