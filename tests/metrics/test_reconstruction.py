import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from lightning_gen.metrics.reconstruction import psnr, reconstruction_protocol, ssim, ssim_name, ssim_window

SIZES = {(32, 32): 11, (11, 40): 11, (12, 11): 11, (10, 64): 9, (8, 8): 7, (7, 9): 7, (28, 4): 3, (3, 3): 3}


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def smooth(*shape):
    """Images in (-0.5, 0.5)."""
    return images(*shape) / 2


@pytest.mark.parametrize("shift", [0.5, -0.25, 1e-3])
def test_psnr_of_a_constant_shift(shift):
    x = smooth(3, 2, 8, 8)
    # torchmetrics keeps the logarithm of 10 in float32
    assert psnr(x, x + shift).tolist() == pytest.approx([20 * math.log10(2 / abs(shift))] * 3, rel=1e-6)


def test_psnr_is_image_by_image():
    x = smooth(2, 1, 4, 4)
    y = x + torch.tensor([0.1, 0.01], dtype=torch.float64).view(2, 1, 1, 1)
    first, second = psnr(x, y).tolist()
    assert second - first == pytest.approx(20, rel=1e-6)


def test_equal_images():
    x = images(2, 3, 16, 16)
    assert psnr(x, x).tolist() == [math.inf] * 2
    assert (ssim(x, x) - 1).abs().max() < 1e-12


def test_what_is_outside_of_the_range_is_clamped():
    x = torch.ones(1, 1, 16, 16)
    assert psnr(x, 3 * x).item() == math.inf
    assert ssim(x, 3 * x).item() == pytest.approx(1)
    assert psnr(-5 * x, 5 * x).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.1), (-0.5, 0.5), (1.0, -1.0)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ssim_of_two_constants_is_its_first_factor(a, b, size):
    c1 = 0.02**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    x = torch.ones(1, 3, *size, dtype=torch.float64)
    assert ssim(a * x, b * x).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("contrast", [0.5, 0.0, -1.0])
def test_ssim_of_another_contrast_is_its_second_factor(contrast):
    """Stripes whose mean under the window is 0 as good as exactly, their period being two pixels."""
    x = 0.5 * (1 - 2 * (torch.arange(24) % 2)).double().expand(1, 1, 24, 24).clone()
    x = x * (1 - 2 * (torch.arange(24) % 2)).double().view(24, 1)
    c2 = 0.06**2
    variance = 0.25
    expected = (2 * contrast * variance + c2) / ((1 + contrast**2) * variance + c2)
    assert ssim(x, contrast * x).item() == pytest.approx(expected, abs=1e-4)


def ssim_of(x, y, window, sigma):
    """Wang et al.'s value of one channel, by scipy, where the whole window is inside."""
    offsets = np.arange(window) - window // 2
    one_axis = np.exp(-(offsets**2) / (2 * sigma**2))
    kernel = np.outer(one_axis, one_axis) / one_axis.sum() ** 2
    border = window // 2

    def mean(image):
        rows, columns = image.shape
        return ndimage.correlate(image, kernel)[border : rows - border, border : columns - border]

    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2, mean(x * y) - mu_x * mu_y
    c1, c2 = 0.02**2, 0.06**2
    return ((2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))).mean()


@pytest.mark.parametrize(("size", "window"), SIZES.items(), ids=map(str, SIZES))
def test_ssim_is_that_of_the_paper(size, window):
    x, y = images(2, 3, *size), images(2, 3, *size, seed=1)
    y = (x + 0.3 * y).clamp(-1, 1)
    assert ssim_window(size) == window
    made = ssim(x, y)
    for sample in range(2):
        each = [ssim_of(x[sample, c].numpy(), y[sample, c].numpy(), window, 1.5 * window / 11) for c in range(3)]
        assert made[sample].item() == pytest.approx(np.mean(each), abs=1e-10)


def test_the_name_and_the_protocol_tell_the_window():
    assert ssim_name((28, 28)) == "ssim"
    assert ssim_name((8, 8)) == "ssim-7"
    told = reconstruction_protocol((1, 8, 8))
    assert set(told) == {"psnr", "ssim-7"}
    assert all("images 1 x 8 x 8, clamped" in text for text in told.values())
    assert "7 x 7, deviation 0.955" in told["ssim-7"]
    assert set(reconstruction_protocol((1, 2, 8))) == {"psnr"}


def test_bf16_images_are_compared_in_float32():
    x, y = smooth(2, 1, 16, 16).bfloat16(), images(2, 1, 16, 16, seed=1).bfloat16()
    for score in (psnr, ssim):
        assert score(x, y).dtype == torch.float32
        assert torch.allclose(score(x, y).double(), score(x.double(), y.double()), rtol=1e-4)


@pytest.mark.parametrize("score", [psnr, ssim])
def test_what_cannot_be_compared_is_refused(score):
    with pytest.raises(ValueError, match="one shape"):
        score(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))
    with pytest.raises(ValueError, match="from_uint8"):
        score(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8))


def test_ssim_of_nothing_but_an_edge_is_refused():
    with pytest.raises(ValueError, match="3 x 3"):
        ssim(torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8))
