"""The maps of adaptive discriminator augmentation as homogeneous matrices, one a sample.

Geometry: 3 x 3 matrices on (x, y, 1), in pixels, with the origin at the image's center, x to the right and y
down. Every function returns the INVERSE of the transform it is named after, since an output pixel asks where it
comes from: with G = T_n ... T_1 the source of output position v is T_1^-1 ... T_n^-1 v, so inverses multiply from
left to right in the order in which the transforms are applied.

Color: 4 x 4 matrices on (R, G, B, 1), in the images' range [-1, 1]; a later transform multiplies from the left.

Parameters are tensors of shape (n,), matrices (n, 3, 3) or (n, 4, 4), of the parameters' dtype and device.

References:
    Training Generative Adversarial Networks with Limited Data (appendix B), https://arxiv.org/abs/2006.06676
"""

import torch
from torch import Tensor


def _matrix(rows: list[list[Tensor | float]], like: Tensor) -> Tensor:
    """Put entries of shape (n,) or plain numbers together into (n, rows, columns)."""
    filled = [
        torch.stack([e if isinstance(e, Tensor) else torch.full_like(like, e) for e in row], dim=-1) for row in rows
    ]
    return torch.stack(filled, dim=-2)


def inverse_scaling(sx: Tensor, sy: Tensor) -> Tensor:
    """Undo an enlargement by `sx` to the right and `sy` downward (-1 mirrors)."""
    return _matrix([[1 / sx, 0.0, 0.0], [0.0, 1 / sy, 0.0], [0.0, 0.0, 1.0]], sx)


def inverse_rotation(angle: Tensor) -> Tensor:
    """Undo a rotation by `angle` radians, counterclockwise as the image is seen."""
    cos, sin = angle.cos(), angle.sin()
    return _matrix([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], angle)


def inverse_quarter_turns(k: Tensor) -> Tensor:
    """Undo `k` (0, 1, 2, 3) rotations by 90 degrees, counterclockwise; exact, as no sine is rounded."""
    cos = torch.where(k % 2 == 0, 1 - k, 0.0)
    sin = torch.where(k % 2 == 1, 2 - k, 0.0)
    return _matrix([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]], k)


def inverse_translation(tx: Tensor, ty: Tensor) -> Tensor:
    """Undo a shift of the content by `tx` pixels to the right and `ty` pixels down."""
    return _matrix([[1.0, 0.0, -tx], [0.0, 1.0, -ty], [0.0, 0.0, 1.0]], tx)


def shift_color(b: Tensor) -> Tensor:
    """Add `b` to every channel (brightness)."""
    return _matrix(
        [[1.0, 0.0, 0.0, b], [0.0, 1.0, 0.0, b], [0.0, 0.0, 1.0, b], [0.0, 0.0, 0.0, 1.0]],
        b,
    )


def scale_color(c: Tensor) -> Tensor:
    """Multiply every channel by `c`, around mid-gray (contrast)."""
    return _matrix(
        [[c, 0.0, 0.0, 0.0], [0.0, c, 0.0, 0.0], [0.0, 0.0, c, 0.0], [0.0, 0.0, 0.0, 1.0]],
        c,
    )


def _luma_projection(like: Tensor) -> Tensor:
    """Return v v^T for the luma axis v = (1, 1, 1, 0) / sqrt(3), (4, 4)."""
    projection = like.new_full((4, 4), 1 / 3)
    projection[3], projection[:, 3] = 0.0, 0.0
    return projection


def luma_flip(i: Tensor) -> Tensor:
    """Mirror colors at the plane orthogonal to the luma axis where `i` is 1 (Householder), keep them at 0."""
    return torch.eye(4, dtype=i.dtype, device=i.device) - 2 * i[:, None, None] * _luma_projection(i)


def rotate_hue(angle: Tensor) -> Tensor:
    """Rotate colors around the luma axis by `angle` radians (Rodrigues), keeping R + G + B."""
    sin = angle.sin() / 3**0.5
    cross = _matrix([[0.0, -sin, sin, 0.0], [sin, 0.0, -sin, 0.0], [-sin, sin, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], angle)
    eye = torch.eye(4, dtype=angle.dtype, device=angle.device)
    color = eye.clone()
    color[3, 3] = 0.0
    return eye + (angle.cos() - 1)[:, None, None] * (color - _luma_projection(angle)) + cross


def saturate(s: Tensor) -> Tensor:
    """Multiply the distance of each color to the luma axis by `s`."""
    eye = torch.eye(4, dtype=s.dtype, device=s.device)
    eye[3, 3] = 0.0
    last = torch.zeros_like(eye)
    last[3, 3] = 1.0
    # In this form s = 1 is exactly the identity.
    return eye * s[:, None, None] + (1 - s)[:, None, None] * _luma_projection(s) + last


def recolor(x: Tensor, matrix: Tensor) -> Tensor:
    """Apply a color matrix to every pixel of each image.

    All color transforms map gray to gray, so an image of one channel is taken as R = G = B and stays one.

    Args:
        x: images, (B, C, H, W), C 1 or 3.
        matrix: (B, 4, 4).

    Raises:
        ValueError: for another number of channels.
    """
    channels = x.shape[1]
    if channels not in (1, 3):
        raise ValueError(
            f"Color transforms need images of 1 or 3 channels, these have {channels}. Leave them out, for "
            f"instance with ADA(transforms='blit,geometric')."
        )
    linear, offset = matrix[:, :3, :3], matrix[:, :3, 3]
    if channels == 1:
        linear, offset = linear.sum(dim=(1, 2)) / 3, offset.mean(dim=1)
        return x * linear[:, None, None, None] + offset[:, None, None, None]
    return torch.einsum("bij,bjhw->bihw", linear, x) + offset[:, :, None, None]
