"""DiffAugment: a fixed set of strong, differentiable augmentations for GANs with little data.

For each image by itself, in the order of the policy, with u ~ U[0,1):

- `color`: brightness x + (u - 1/2), then saturation m + 2u (x - m) with m the mean over channels, then
  contrast m + (u + 1/2)(x - m) with m the mean of the image;
- `translation`: a shift by up to 1/8 of height and width, zeros coming in;
- `cutout`: a square of half the height and width set to zero, its center anywhere in the image.

References:
    Differentiable Augmentation for Data-Efficient GAN Training, https://arxiv.org/abs/2006.10738
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gen.gan.augmentation import Augmentation, parse_names


def _uniform(x: Tensor) -> Tensor:
    """Draw one number in [0, 1) an image, (B, 1, 1, 1)."""
    return torch.rand(len(x), 1, 1, 1, dtype=torch.float32, device=x.device).to(x.dtype)


def _integers(x: Tensor, low: int, high: int) -> Tensor:
    """Draw one integer in [low, high] an image, (B, 1)."""
    return torch.randint(low, high + 1, (len(x), 1), device=x.device)


def brightness(x: Tensor) -> Tensor:
    """Add one number in [-0.5, 0.5) to each image, (B, C, H, W)."""
    return x + (_uniform(x) - 0.5)


def saturation(x: Tensor) -> Tensor:
    """Scale each pixel's distance to its gray by a number in [0, 2); gray images pass, (B, C, H, W)."""
    if x.shape[1] == 1:
        return x
    gray = x.mean(dim=1, keepdim=True)
    return gray + (x - gray) * (2 * _uniform(x))


def contrast(x: Tensor) -> Tensor:
    """Scale each image's distance to its mean by a number in [0.5, 1.5), (B, C, H, W)."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * (_uniform(x) + 0.5)


def color(x: Tensor) -> Tensor:
    """Change brightness, saturation and contrast of each image, (B, C, H, W)."""
    return contrast(saturation(brightness(x)))


def _shift(x: Tensor, by: Tensor, dim: int) -> Tensor:
    """Shift image b by `by[b]` pixels along a dimension, zeros coming in.

    Args:
        x: images, (B, C, H, W).
        by: pixels, (B, 1), int64.
        dim: 2 or 3.
    """
    size = x.shape[dim]
    source = torch.arange(size, device=x.device) - by
    view = (len(x), 1, size, 1) if dim == 2 else (len(x), 1, 1, size)
    outside = ((source < 0) | (source >= size)).view(view)
    index = source.clamp(0, size - 1).view(view).expand(x.shape)
    return torch.gather(x, dim, index).masked_fill(outside, 0.0)


def translation(x: Tensor, ratio: float = 0.125) -> Tensor:
    """Shift each image by up to `ratio` of its height and width, zeros coming in, (B, C, H, W)."""
    for dim in (2, 3):
        most = int(x.shape[dim] * ratio + 0.5)
        x = _shift(x, _integers(x, -most, most), dim)
    return x


def _inside(x: Tensor, ratio: float, dim: int) -> Tensor:
    """Draw an interval of `ratio` of the size, (B, size) bool; the parts outside the image are lost."""
    size = x.shape[dim]
    length = int(size * ratio + 0.5)
    # With an even length the interval lies left of its center, so one center more makes both borders alike.
    first = _integers(x, 0, size - length % 2) - length // 2
    position = torch.arange(size, device=x.device)
    return (position >= first) & (position < first + length)


def cutout(x: Tensor, ratio: float = 0.5) -> Tensor:
    """Set a rectangle of `ratio` of height and width in each image to zero, (B, C, H, W)."""
    rows, columns = _inside(x, ratio, 2), _inside(x, ratio, 3)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


POLICIES: dict[str, Callable[[Tensor], Tensor]] = {
    "color": color,
    "translation": translation,
    "cutout": cutout,
}


class DiffAugment(Augmentation):
    """Color changes, shifts and cutouts, as in the paper.

    Args:
        policy: comma list of "color", "translation", "cutout", applied in the order given; "" is the identity.

    Raises:
        ValueError: for an unknown name, with the nearest ones.

    References:
        Differentiable Augmentation for Data-Efficient GAN Training, https://arxiv.org/abs/2006.10738
    """

    def __init__(self, policy: str = "color,translation,cutout") -> None:
        super().__init__()
        self.policy = parse_names("DiffAugment policy", policy, list(POLICIES))

    def forward(self, x: Tensor) -> Tensor:
        """Augment each image by itself, (B, C, H, W) to (B, C, H, W)."""
        for name in self.policy:
            x = POLICIES[name](x)
        return x

    def extra_repr(self) -> str:
        """Show the policy in the module's repr."""
        return f"policy={','.join(self.policy)!r}"
