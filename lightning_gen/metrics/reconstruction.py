r"""How near reconstructions are to their images, image by image: peak signal-to-noise ratio and structural similarity.

.. math::
    \mathrm{PSNR} = 10 \log_{10} \frac{L^2}{\mathrm{MSE}}, \qquad
    \mathrm{SSIM} = \frac{(2 \mu_x \mu_y + c_1)(2 \sigma_{xy} + c_2)}
        {(\mu_x^2 + \mu_y^2 + c_1)(\sigma_x^2 + \sigma_y^2 + c_2)}, \qquad c_1 = (0.01 L)^2, \quad c_2 = (0.03 L)^2,

L = 2 being the range of images in [-1, 1]. Means and (co)variances of SSIM are under a Gaussian window of 11 x 11
pixels and standard deviation 1.5, at every place where the whole window is inside of the image; the value is the mean
over places and channels. An image with a side below 11 has a smaller window: the largest odd number of pixels that
fits, the standard deviation in proportion. Such values are comparable with each other alone: `ssim_name` tells them
apart.

What lies outside of [-1, 1] is clamped first, as it is in a picture. The computation is torchmetrics'.

References:
    Image Quality Assessment: From Error Visibility to Structural Similarity
    https://doi.org/10.1109/TIP.2003.819861
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RANGE = (-1.0, 1.0)
WINDOW, SIGMA = 11, 1.5
SMALLEST = 3
"""Pixels along each axis that SSIM needs: a window of one pixel has no variance."""


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Return peak signal-to-noise ratios in decibels, `(B,)`, higher being nearer; infinite for equal images.

    Args:
        x: images in [-1, 1], `(B, C, H, W)`.
        y: their reconstructions.

    Raises:
        ValueError: for images of two shapes.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    _check("psnr", x, y)
    x, y = _precise(x), _precise(y)
    return peak_signal_noise_ratio(y, x, RANGE, reduction="none", dim=(1, 2, 3))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return structural similarities `(B,)`, at most 1, which is that of equal images.

    Args:
        x: images in [-1, 1], `(B, C, H, W)`, 3 x 3 or larger.
        y: their reconstructions.

    Raises:
        ValueError: for images of two shapes, or too small.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check("ssim", x, y)
    window = ssim_window(x.shape[2:])
    x, y = _precise(x), _precise(y)
    _, places = structural_similarity_index_measure(
        y, x, sigma=SIGMA * window / WINDOW, data_range=RANGE, reduction="none", return_full_image=True
    )
    border = window // 2  # where the window hangs over the edge, torchmetrics mirrors the image
    height, width = x.shape[2:]
    inside: Tensor = places[:, :, border : height - border, border : width - border]
    return inside.flatten(1).mean(1)


def ssim_window(size: Sequence[int]) -> int:
    """Return the side of the window for images of that height and width.

    Raises:
        ValueError: where a side is below 3 pixels.
    """
    if min(size) < SMALLEST:
        raise ValueError(
            f"SSIM is of images of {SMALLEST} x {SMALLEST} or larger, not {' x '.join(map(str, size))}; use psnr."
        )
    return min(WINDOW, min(size) - (min(size) + 1) % 2)


def ssim_name(size: Sequence[int]) -> str:
    """Return what SSIM of images of that height and width is called: `ssim`, or `ssim-7` with a window of 7 x 7."""
    window = ssim_window(size)
    return "ssim" if window == WINDOW else f"ssim-{window}"


def reconstruction_protocol(image_shape: Sequence[int]) -> dict[str, str]:
    """Say, by name of the score, how PSNR and SSIM of images `(C, H, W)` are measured."""
    channels, height, width = image_shape
    images = f"mean over images {channels} x {height} x {width}, clamped to [-1, 1]"
    found = {"psnr": f"{images}; decibels of each image, range 2"}
    if min(height, width) >= SMALLEST:
        window = ssim_window((height, width))
        gaussian = f"Gaussian window {window} x {window}, deviation {SIGMA * window / WINDOW:.3g}, inside of the image"
        found[ssim_name((height, width))] = f"{images}; {gaussian}; constants 0.01 and 0.03, range 2"
    return found


def _check(name: str, x: Tensor, y: Tensor) -> None:
    if x.ndim != 4 or x.shape != y.shape or not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(
            f"{name} compares images in [-1, 1] of one shape (B, C, H, W), not {x.dtype} {tuple(x.shape)} with"
            f" {y.dtype} {tuple(y.shape)}; lightning_gen.images.from_uint8 converts bytes."
        )


def _precise(images: Tensor) -> Tensor:
    return images.to(torch.promote_types(images.dtype, torch.float32))
